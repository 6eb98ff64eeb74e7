"""The page: data, train, compare, try, without code; the command line's own functions, and nothing beside them.

    lorafit ui

Needs the extra `ui`. `server` listens, `page` puts the four steps together: `data`, `train` with `panel`, `compare`,
`ask`. What takes long is a process (`jobs`) that goes on when the page is closed; what is shown as HTML is made in
`views`.
"""
