"""What the service is asked and what it answers, in two shapes: its own, and text-embeddings-inference's."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from lorafit.data import Text

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
_OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["demo"])]
TopK = Annotated[int, Field(ge=1, le=100_000)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Texts(_Asked):
    """The service's own shape."""

    texts: str | Annotated[list[str | Pair], Field(min_length=1)] = Field(
        examples=[["A film to remember.", "Two hours that I will not get back."]]
    )
    """One text, or a list of texts; of an adapter that reads pairs a list of lists of two."""
    adapter: AdapterName | None = None
    """Who answers; without a name the only adapter, or the default."""
    top_k: TopK | None = None
    """How many labels a text to name, the most probable first; all of them by default."""

    def listed(self) -> list[Text]:
        """Return the texts, pairs as tuples."""
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        return [text if isinstance(text, str) else (text[0], text[1]) for text in texts]


class Parameters(_Asked):
    """What huggingface_hub's InferenceClient sends beside the text."""

    top_k: TopK | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """"none": logits. The adapter's task decides between the others."""


class Inputs(_Asked):
    """The shape of text-embeddings-inference's /predict; with `parameters` that of the Hub's inference API."""

    inputs: str | _OneOrTwo | Annotated[list[_OneOrTwo], Field(min_length=1)] = Field(examples=["A film to remember."])
    """One text, one pair of texts, or a list of lists of one or two."""
    truncate: bool | None = None
    """False: a text that is longer than what is read of it is refused. By default it is read as in training."""
    truncation_direction: Literal["Right", "right"] = "Right"
    raw_scores: bool = False
    """Logits in place of probabilities."""
    parameters: Parameters | None = None
    adapter: AdapterName | None = None
    """Not of text-embeddings-inference: who answers."""

    @property
    def wants_lists(self) -> bool:
        """Whether the answer is a list of lists; the Hub gives one for a single text too."""
        return self._is_batch or self.parameters is not None

    @property
    def wants_logits(self) -> bool:
        """Whether scores are logits."""
        return self.raw_scores or (self.parameters is not None and self.parameters.function_to_apply == "none")

    @property
    def top_k(self) -> int | None:
        """How many labels to name."""
        return self.parameters.top_k if self.parameters else None

    @property
    def _is_batch(self) -> bool:
        return not isinstance(self.inputs, str) and not isinstance(self.inputs[0], str)

    def listed(self) -> list[Text]:
        """Return the texts, pairs as tuples."""
        several: list[Any] = list(self.inputs) if self._is_batch else [self.inputs]
        return [_text([text] if isinstance(text, str) else text) for text in several]


def _text(strings: list[str]) -> Text:
    return strings[0] if len(strings) == 1 else (strings[0], strings[1])


def _shape(body: Any) -> str:
    has_inputs = "inputs" in body if isinstance(body, dict) else isinstance(body, Inputs)
    return "inputs" if has_inputs else "texts"


Question = Annotated[Annotated[Texts, Tag("texts")] | Annotated[Inputs, Tag("inputs")], Discriminator(_shape)]

QUESTIONS: dict[str, Any] = {
    "one text": {"value": {"texts": "A film to remember."}},
    "several, by name": {"value": {"texts": ["A film to remember.", "Two hours lost."], "adapter": "demo", "top_k": 1}},
    "pairs": {"value": {"texts": [["A man sleeps.", "Someone is awake."]], "adapter": "entailment"}},
    "text-embeddings-inference": {"value": {"inputs": "A film to remember.", "raw_scores": False}},
    "text-embeddings-inference, a batch": {"value": {"inputs": [["A film to remember."], ["Two hours lost."]]}},
}


class _Answered(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Score(_Answered):
    """A label and its probability; a logit where logits were asked for."""

    label: str = Field(examples=["pos"])
    score: float = Field(examples=[0.97])


class Prediction(_Answered):
    """The answer to one text: `label`, or `labels` where a text may have several."""

    label: str | None = Field(default=None, examples=["pos"])
    labels: list[str] | None = None
    scores: list[Score]
    """The most probable label first."""


class Predictions(_Answered):
    """The answer to texts."""

    adapter: str = Field(examples=["demo"])
    """Who answered."""
    sha256: str
    """Of its bundle: which version of it answered."""
    cut_texts: int
    """Of how many texts a part was not read."""
    predictions: list[Prediction]
    """In the order of the texts."""


Scores = list[Score] | list[list[Score]]
"""text-embeddings-inference's answer: of one text, or of each of several."""


class Place(_Asked):
    """Where a bundle lies."""

    path: str = Field(min_length=1, max_length=1000, examples=["reviews/adapter"])
    """A run folder, an adapter folder or an export, below the folder that the service may load from."""


class AdapterInfo(_Answered):
    """One adapter in service."""

    name: str
    default: bool
    """Whether it answers where no name is given."""
    labels: list[str]
    task: Literal["single_label", "multi_label"]
    text_pair: bool
    """Whether it reads pairs of texts."""
    max_tokens: int
    long_text: str
    """What is read of longer texts."""
    sha256: str
    """Of its bundle."""
    encoder: str
    """The encoder that it was trained on."""
    backend: str
    """What computes: "fp32", "bf16", or an export's form."""
    alone: str
    """Why it has an encoder of its own; empty if it shares one, or would with the next adapter on it."""
    since: str
    """When it was taken into service."""


class AdapterList(_Answered):
    """The adapters in service."""

    adapters: list[AdapterInfo]


class Status(_Answered):
    """How the service is."""

    status: str = Field(examples=["ok"])


class Problem(_Answered):
    """Why there is no answer."""

    error: str
    error_type: str
