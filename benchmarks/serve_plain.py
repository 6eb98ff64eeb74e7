"""The service that most people write: FastAPI around a pipeline of transformers. The peer of `lorafit serve`.

python benchmarks/serve_plain.py MERGED PORT
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Question(BaseModel):
    """What is asked."""

    texts: str | list[str]


def main(model: str, port: int) -> None:
    """Answer until told to stop."""
    classify = pipeline("text-classification", model=model, truncation=True, top_k=None)
    app = FastAPI()

    @app.post("/predict")
    def predict(question: Question) -> object:
        return classify(question.texts)

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
