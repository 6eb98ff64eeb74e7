"""The four steps on one page, and what leads from one to the next."""

from pathlib import Path
from typing import Any

import gradio as gr

from lorafit import __version__
from lorafit.ui import ask, compare, data, libraries, panel, train, watch
from lorafit.ui.choice import BUNDLED, Choice, bundled
from lorafit.ui.events import event, looking_at
from lorafit.ui.uploads import SECONDS_KEPT

_HERE = Path(__file__).parent
_AT_ONCE = 16  # events of a kind, of all visitors
_BLUE = gr.themes.Color(
    c50="#eef6fc", c100="#d6eaf7", c200="#aed4ee", c300="#7ebbe3", c400="#3f9bd4", c500="#0072b2",
    c600="#00659e", c700="#00557f", c800="#004568", c900="#003752", c950="#00243a", name="blue",
)  # fmt: skip
THEME = gr.themes.Default(
    primary_hue=_BLUE,
    neutral_hue="slate",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"],
    font_mono=["ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace"],
)
HEAD = f"<style>{(_HERE / 'page.css').read_text(encoding='utf-8')}</style>"  # Gradio would rewrite its selectors


def build() -> gr.Blocks:
    """Return the page, with nothing chosen."""
    page: gr.Blocks
    with gr.Blocks(title="lorafit", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        choice = gr.State(None)
        browser = gr.BrowserState({}, storage_key="lorafit", secret="not-a-secret")  # what a reload finds again
        gr.HTML(
            '<header id="top"><h1>lorafit</h1><p class="note">Your texts with their labels become a classifier: choose '
            f"data, train, see what was gained, try it. Version {__version__}.</p></header>"
        )
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("1 Data", id="data"):
                data_step = data.build(choice)
            with gr.Tab("2 Train", id="train") as train_tab:
                train_step = train.build(choice)
                panel_of_runs = panel.build()
            with gr.Tab("3 Compare", id="compare") as compare_tab:
                compare_step = compare.build()
            with gr.Tab("4 Try", id="try") as ask_tab:
                ask_step = ask.build()

        choice.change(**event(_noted, [choice, browser], browser, again=True)).then(**train_step.fill)
        onward = data_step.onward.click(**event(lambda: gr.Tabs(selected="train"), None, tabs))
        onward.then(**looking_at("top"))
        train_step.tell_time(onward.then)
        train.lead_to(train_step, panel_of_runs)
        panel_of_runs.run.change(**event(_noted_run, [panel_of_runs.run, browser], browser, again=True))
        train_tab.select(**event(_runs, panel_of_runs.run, panel_of_runs.run)).then(**panel_of_runs.follow)
        compare_tab.select(**compare_step.refresh).then(**compare_step.show)
        ask_tab.select(**ask_step.refresh)
        _lead(panel_of_runs.onward, "compare", tabs, panel_of_runs.run, compare_step.run).success(
            **compare_step.begin
        ).success(**compare_step.show)
        _lead(compare_step.onward, "try", tabs, compare_step.run, ask_step.run)
        page.load(**event(_restored_run, browser, [panel_of_runs.run, tabs])).then(**panel_of_runs.follow).then(
            **event(data.restored, browser, data_step.found)
        ).then(**data_step.fill).then(**data_step.look).then(**data_step.tell).then(
            **event(libraries.ready, None, None)
        )
    page.queue(default_concurrency_limit=_AT_ONCE, api_open=False)
    return page


def _lead(button: gr.Button, tab: str, tabs: gr.Tabs, run: gr.Dropdown, there: gr.Dropdown) -> Any:
    """Let a button lead to another step, with the same run chosen there."""

    def led(name: str | None) -> tuple[gr.Tabs, gr.Dropdown]:
        return gr.Tabs(selected=tab), gr.Dropdown(choices=[name] if name else [], value=name)

    led_there = button.click(**event(led, run, [tabs, there]))
    led_there.success(**looking_at("top"))
    return led_there


def _noted(choice: Choice | None, browser: dict[str, Any]) -> dict[str, Any]:
    """Return what the visitor's browser keeps of a choice."""
    if choice is None:
        return browser
    found = {"source": str(choice.source), "text": choice.text, "labels": list(choice.labels), "pair": choice.pair}
    names = [name for name in BUNDLED if bundled(name).source == choice.source]
    return browser | found | {"bundled": names[0] if names else ""}


def _noted_run(name: str | None, browser: dict[str, Any]) -> dict[str, Any]:
    return browser | {"run": name or ""}


def _runs(name: str | None) -> Any:
    """Return the list of runs as it is now; what is chosen stays, and may be chosen this very moment."""
    known = [name] if name and watch.is_known(name) else []
    return gr.Dropdown(choices=list(dict.fromkeys([*watch.names(), *known])))


def _restored_run(browser: dict[str, Any]) -> tuple[Any, ...]:
    """Return the run that the visitor looked at before a reload; its step is shown where it still goes on."""
    name = browser.get("run") if isinstance(browser, dict) else None
    there = watch.names()
    if not isinstance(name, str) or not watch.is_known(name):
        return gr.Dropdown(choices=there), gr.skip()  # what is chosen at this very moment stays
    tab = gr.Tabs(selected="train") if watch.look(name).state in watch.UNDER_WAY else gr.skip()
    return gr.Dropdown(choices=list(dict.fromkeys([*there, name])), value=name), tab
