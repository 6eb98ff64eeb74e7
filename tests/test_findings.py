"""What is said about texts and labels: each plant is found, and clean data gives no finding."""

import pytest

from lorafit import findings
from lorafit.findings import Finding, Row


def rows(*texts: str, label: str = "pos", split: str = "") -> list[Row]:
    return [Row(number, text, (label,), split) for number, text in enumerate(texts, start=1)]


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_identical_texts_with_different_labels_contradict_each_other() -> None:
    planted = [Row(1, "so so", ("pos",)), Row(2, "fine", ("pos",)), Row(3, "so so", ("neg",))]
    found = only(findings.contradictions(planted))
    assert (found.severity, found.texts) == ("warning", 2)
    assert found.examples == ['row 1 (pos) and row 3 (neg): "so so"']
    assert findings.contradictions([*planted[:2], planted[0]._replace(number=3)]) == []


def test_a_text_with_the_same_several_labels_does_not_contradict_itself() -> None:
    assert findings.contradictions([Row(1, "a", ("x", "y")), Row(2, "a", ("x", "y"))]) == []
    assert only(findings.contradictions([Row(1, "a", ("x", "y")), Row(2, "a", ())])).examples == [
        'row 1 (x, y) and row 2 (no label): "a"'
    ]


def test_repeated_texts_are_counted_within_their_source() -> None:
    found = only(findings.repeated(rows("a", "b", "a", "a")))
    assert (found.severity, found.texts) == ("note", 2)
    assert found.examples[0] == 'row 1 and row 3: "a"'
    assert findings.repeated([*rows("a"), Row(1, "a", ("pos",), "test", "test", "test.csv")]) == []


def test_a_text_of_training_in_a_test_of_its_own_is_an_error() -> None:
    leaked = [*rows("a", "b"), Row(7, "b", ("pos",), "test", "test", "test.csv")]
    found = only(findings.leaks(leaked))
    assert (found.severity, found.texts) == ("error", 1)
    assert found.sentence.startswith("1 text of the test source stands in the training source too.")
    assert found.examples == ['test.csv row 7 and row 2: "b"']
    assert findings.leaks(leaked[:2]) == []
    validation = Row(3, "c", ("pos",), "", "validation", "dev.csv")
    assert findings.leaks([*leaked[:2], validation]) == []
    both = findings.leaks([*rows("c"), validation, Row(4, "c", ("pos",), "test", "test", "test.csv")])
    assert [finding.severity for finding in both] == ["error"] * 3
    assert [finding.examples for finding in both] == [
        ['dev.csv row 3 and row 1: "c"'],
        ['test.csv row 4 and row 1: "c"'],
        ['test.csv row 4 and dev.csv row 3: "c"'],
    ]


def test_near_duplicates_are_a_note_and_across_our_splits_a_warning() -> None:
    same = "the film was a story of people with music and it was good"
    train, test = Row(1, same, ("pos",), "train"), Row(2, f"{same}!", ("neg",), "test")
    warning, note = findings.near_duplicates([train, test])
    assert (warning.severity, warning.texts) == ("warning", 1)
    assert warning.sentence.startswith("1 test text has a near duplicate in train")
    assert warning.examples == [f'row 1 and row 2: "{same}!"']
    assert (note.severity, note.texts) == ("note", 2)
    assert "in 1 group; 1 of these holds different labels" in note.sentence
    assert only(findings.near_duplicates([train, test._replace(split="train")])).severity == "note"
    assert findings.near_duplicates(rows("one thing", "another one")) == []


def test_rare_classes_and_a_lack_of_balance_are_named() -> None:
    few = [*rows(*"abcdefghij", label="common"), *rows("x", label="rare")]
    rare, imbalance = findings.too_few(few, ["common", "rare"])
    assert rare.sentence.startswith("1 class has fewer than 5 texts: 'rare' (1).")
    assert imbalance.sentence.startswith("'common' has 10 texts, 'rare' 1.")
    unlabelled = [Row(1, "a", ()), Row(2, "b", ())]
    assert only(findings.too_few(unlabelled, ["x", "y"])).sentence.startswith("2 classes have fewer than 5 texts")
    assert findings.too_few([*few[:5], *rows(*"vwxyz", label="rare")], ["common", "rare"]) == []


def test_a_class_missing_from_train_is_an_error_and_from_test_a_warning() -> None:
    parts = [*rows("a", label="x", split="train"), *rows("b", label="y", split="test")]
    assert [(found.severity, found.sentence) for found in findings.missing_classes(parts, ["x", "y"])] == [
        ("error", "No train text has the label 'y': nothing can be learned of it."),
        ("warning", "No test text has the label 'x': its score says nothing of them."),
    ]
    assert findings.missing_classes([*parts, *rows("c", label="y", split="train")], ["y"]) == []


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("a caf\ufffd", "lost characters"),
        ("it’s a café".encode().decode("cp1252"), "wrong encoding"),
        ("déjà vu".encode().decode("latin-1"), "wrong encoding"),
        ("привет".encode().decode("latin-1"), "wrong encoding"),
        ("so 😀".encode().decode("cp1252"), "wrong encoding"),
        ("a bell\x07", "control characters"),
        ("a dash \x96 of Windows", "control characters"),
    ],
)
def test_damaged_texts_are_found(text: str, about: str) -> None:
    found = findings.encodings(rows("as it should be", text))
    assert about in {finding.about for finding in found}
    assert all((finding.severity, finding.texts) == ("warning", 1) for finding in found)
    assert all("row 2: " in finding.examples[0] and finding.examples[0].isprintable() for finding in found)


@pytest.mark.parametrize(
    "text",
    ["“It’s a café”, déjà vu", "ÉTÉ À LA MER", "NÃO, ESPAÑOL, â la carte", "привет", "日本語 😀", "two\nlines\tof it"],
)
def test_texts_in_order_are_not_taken_for_damaged(text: str) -> None:
    assert findings.encodings(rows(text)) == []


def test_tags_and_entities_are_counted() -> None:
    tags, entities = findings.markup(rows("a<br />b<i>c</i>", "1 < 2 & 3 > 2", "Q&amp;A; &#39;"), "keep")
    assert tags.sentence == '1 of 3 texts hold HTML tags (<br />); data.html = "strip" takes them out.'
    assert entities.sentence.startswith("1 of 3 texts hold HTML entities (&amp;);")
