"""Commands that stay: serve, ui."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.shell import app
from lorafit.errors import LorafitError


@app.command()
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]BUNDLE",
            help="Run folders, adapter folders or exports; without a name each has its run's or folder's.",
        ),
    ],
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")] = 8000,
    default: Annotated[
        str | None, typer.Option("--default", metavar="NAME", help="The adapter that answers where none is named.")
    ] = None,
    adapters_dir: Annotated[
        Path | None,
        typer.Option("--adapters-dir", metavar="DIR", help="Let adapters be loaded on request from below this folder."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="Ask for one of these keys, one a line.")
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Listen beyond this machine without asking for a key.")
    ] = False,
    backend: Annotated[
        Path | None,
        typer.Option("--backend", metavar="EXPORT", help="Run the only bundle on an export of it."),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", metavar="FOLDER", help="Where an encoder lies that is not found by itself."),
    ] = None,
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="auto, bf16 or fp32.")] = "auto",
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=0, help="0 means all cores.")] = 0,
    max_body_bytes: Annotated[
        int, typer.Option("--max-body-bytes", metavar="N", min=1000, help="The largest request.")
    ] = 1_000_000,
    max_texts: Annotated[
        int, typer.Option("--max-texts", metavar="N", min=1, help="The most texts in a request.")
    ] = 256,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="The most tokens that are read of a text.")
    ] = 8192,
    max_queue: Annotated[
        int, typer.Option("--max-queue", metavar="N", min=1, help="The most texts that wait for an answer.")
    ] = 2048,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="The longest that an answer may take.")
    ] = 30.0,
) -> None:
    """Answer HTTP requests, with many adapters on one encoder.

    POST /predict {"texts": [...], "adapter": "NAME"}; also the /predict of text-embeddings-inference. GET /adapters,
    PUT and DELETE /adapters/NAME, /health, /ready, /metrics, /openapi.json. Needs: pip install 'lorafit[serve]'
    """
    try:
        from lorafit import serve as service
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "starlette", "prometheus_client"):
            raise
        raise LorafitError("The service is not installed. Install it with: pip install 'lorafit[serve]'") from None

    service.serve(
        _by_name(bundles),
        host=host,
        port=port,
        default=default,
        adapters_dir=adapters_dir,
        api_key_file=api_key_file,
        without_key=without_key,
        backend=backend,
        known_encoders=tuple(encoder or ()),
        precision=precision,
        threads=threads,
        limits=service.Limits(max_body_bytes, max_texts, max_tokens, max_queue, timeout),
    )


@app.command()
def ui(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")] = 7860,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="Ask for the password in its first line."),
    ] = None,
    max_upload_mb: Annotated[
        int, typer.Option("--max-upload-mb", metavar="N", min=1, help="The largest file that is taken in.")
    ] = 200,
) -> None:
    """Train, compare and try on a page in the browser.

    Four steps without code, for the runs below this folder; uploaded files are kept in uploads/. Trainings go on when
    the page is closed. Needs: pip install 'lorafit[ui]'
    """
    try:
        from lorafit.ui import server
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("gradio", "gradio_client", "fastapi", "uvicorn", "starlette"):
            raise
        raise LorafitError("The page is not installed. Install it with: pip install 'lorafit[ui]'") from None

    server.serve(host=host, port=port, password_file=password_file, max_upload_mb=max_upload_mb)


def _by_name(bundles: list[str]) -> dict[str, Path]:
    """Return bundles by name; "runs/demo" and "runs/demo/adapter" are called demo.

    Raises:
        LorafitError: a name that can't be asked by, or that two have.
    """
    from pydantic import TypeAdapter, ValidationError

    from lorafit.serve.messages import AdapterName

    found: dict[str, Path] = {}
    for given in bundles:
        name, said, path = given.partition("=")
        folder = Path(path if said else given)
        if not said:
            whole = folder.resolve()
            name = whole.parent.name if whole.name == "adapter" else whole.name
        try:
            TypeAdapter(AdapterName).validate_python(name)
        except ValidationError:
            raise LorafitError(
                f"{name!r} can't be an adapter's name: letters, digits, '.', '_' and '-' can, up to 64. "
                "Give it one: NAME=BUNDLE."
            ) from None
        if name in found:
            raise LorafitError(f"Two adapters are called {name!r}. Give one of them another name: NAME=BUNDLE.")
        found[name] = folder
    return found
