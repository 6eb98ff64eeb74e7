"""A recipe says what a run is, and refuses everything else in one line."""

from pathlib import Path

import pytest

from lorafit import recipe
from lorafit.errors import RecipeError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"adapter": {"rnk": 1}}, "adapter.rnk is no key of a recipe. Did you mean 'adapter.rank'?"),
        ({"rank": 1}, "rank is no key of a recipe. Did you mean 'adapter.rank'?"),
        ({"trainig": {}}, "trainig is no key of a recipe. Did you mean 'training'?"),
        ({"adapter": {"rank": 0}}, "adapter.rank = 0: it should be greater than 0."),
        ({"adapter": {"rank": "8"}}, 'adapter.rank = "8": it should be a valid integer.'),
        ({"encoder": {"pooling": "max"}}, "encoder.pooling = \"max\": it can be 'first' or 'mean'."),
        ({"training": {"learning_rate": "3e-4"}}, 'training.learning_rate = "3e-4": it should be a valid number.'),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate = inf: it should be a finite number."),
        ({"data": {"train_size": 1.5}}, "data.train_size = 1.5: it should be a valid integer, or it should be less"),
        ({"data": {"label_separator": "JSON"}}, 'data.label_separator = "JSON": cells that are JSON lists have "json"'),
        (
            {"data": {"source": "f.csv", "test_source": "split:test"}},
            'data.test_source = "split:test" is a split of a Hub data set, and data.source, f.csv, is none.',
        ),
        (
            {"data": {"source": "f.csv", "validation_source": "split:dev"}},
            'data.validation_source = "split:dev" is a split of a Hub data set, and data.source, f.csv, is none.',
        ),
        ({"data": {"labels": ["a", "a"]}}, "data.labels needs at least two names, each once; it is ['a', 'a']"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_is_right(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.from_values(values)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_toml_faults_say_where(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('name = "a"\n[data\n')
    with pytest.raises(RecipeError, match=r"broken.toml is not valid TOML: .*line 2"):
        recipe.load(tmp_path / "broken.toml")
    with pytest.raises(RecipeError, match="There is no recipe"):
        recipe.load(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(RecipeError, match="not UTF-8 text .byte 11."):
        recipe.load(tmp_path / "latin.toml")


def test_overrides_are_toml_values_and_bare_words_are_strings() -> None:
    made = recipe.from_values({}, ("adapter.rank=4", "encoder.name=hub:bert-base-cased", "training.learning_rate=3e-4"))
    assert (made.adapter.rank, made.encoder.name, made.training.learning_rate) == (4, "hub:bert-base-cased", 3e-4)
    with pytest.raises(RecipeError, match=r"table.key=value; this one is 'adapter.rank'"):
        recipe.from_values({}, ("adapter.rank",))


def test_a_fault_in_an_override_is_not_laid_to_the_small_table() -> None:
    with pytest.raises(RecipeError) as error:
        recipe.load(ROOT / "recipes" / "demo.toml", ("encoder.pooling=max",))
    assert "[small]" not in str(error.value)


def test_small_applies_its_own_table_and_renames_the_run() -> None:
    path = ROOT / "recipes" / "imdb-bert-base-uncased.toml"
    small = recipe.load(path, small=True)
    assert (small.data.train_size, small.data.test_size, small.name) == (4000, 2000, "imdb-bert-base-uncased-small")
    with pytest.raises(RecipeError, match=r"has no \[small\] table"):
        recipe.load(ROOT / "recipes" / "imdb-bert-base-cased.toml", small=True)


def test_a_fault_in_the_small_table_is_one_without_the_flag_too(tmp_path: Path) -> None:
    (tmp_path / "my recipe.toml").write_text("[small]\ndata.trian_size = 4\n")
    with pytest.raises(
        RecipeError, match=r"\[small\]: data.trian_size is no key of a recipe. Did you mean 'data.train_size'"
    ):
        recipe.load(tmp_path / "my recipe.toml")
    (tmp_path / "my recipe.toml").write_text("small = 3\n")
    with pytest.raises(RecipeError, match="small is a table of changes"):
        recipe.load(tmp_path / "my recipe.toml")
    (tmp_path / "my recipe.toml").write_text("")
    assert recipe.load(tmp_path / "my recipe.toml").name == "my-recipe"


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    made = recipe.from_values({"name": "x", "data": {"labels": ['a "quoted" one', "ü"]}, "training": {"epochs": 7}})
    for text in (recipe.to_toml(made), recipe.to_commented_toml(made, "to edit")):
        (tmp_path / "x.toml").write_text(text, encoding="utf-8")
        assert recipe.load(tmp_path / "x.toml") == made


def test_the_mean_of_the_last_weights_and_an_early_stop_are_refused_together() -> None:
    both = {"training": {"average": 0.5, "early_stopping": 2}}
    with pytest.raises(RecipeError) as error:
        recipe.from_values(both)
    assert str(error.value) == (
        "recipe: training.average = 0.5 takes the last of all steps, which training.early_stopping = 2 may leave out. "
        "Set one of them to 0"
    )
    assert recipe.from_values(both, ("training.early_stopping=0",)).training.average == 0.5
    assert recipe.from_values(both, ("training.average=0.0",)).training.early_stopping == 2


def test_a_test_of_its_own_is_taken_whole_unless_the_recipe_says_how_much_of_it(tmp_path: Path) -> None:
    own = {"data": {"test_source": "test.csv"}}
    assert recipe.from_values(own).data.test_size == 1.0
    assert recipe.from_values({}, ("data.test_source=test.csv",)).data.test_size == 1.0
    assert recipe.from_values({}).data.test_size == 0.15
    for size in (0.15, 300):
        assert recipe.from_values(own, (f"data.test_size={size}",)).data.test_size == size
    made = recipe.from_values(own)
    (tmp_path / "x.toml").write_text(recipe.to_toml(made), encoding="utf-8")
    assert recipe.load(tmp_path / "x.toml").data == made.data
    earlier = recipe.from_values(own).model_dump() | {"data": recipe.Data(test_size=0.15).model_dump() | own["data"]}
    assert recipe.from_values(earlier).data.test_size == 0.15  # as run.json has it


def test_official_splits_are_taken_whole_and_with_both_the_training_source_too() -> None:
    def sizes(**values: object) -> tuple[float, ...]:
        made = recipe.from_values({"data": values}).data
        return made.train_size, made.validation_size, made.test_size

    both = {"validation_source": "dev.csv", "test_source": "test.csv"}
    assert sizes(validation_source="dev.csv") == (0.7, 1.0, 0.15)
    assert sizes(**both) == (1.0, 1.0, 1.0)
    assert sizes(**both, train_size=50, validation_size=0.5) == (50, 0.5, 1.0)
    named = recipe.from_values({"data": {"validation_source": "/home/somebody/dev.csv"}})
    assert recipe.without_folders(named)["data"]["validation_source"] == "dev.csv"


def test_project_a_stands_to_the_letter() -> None:
    made = recipe.load(ROOT / "recipes" / "imdb-bert-base-cased.toml")
    assert made.adapter == recipe.Adapter(rank=1, alpha=1, dropout=0.1, targets=["query", "value"])
    assert (made.data.train_size, made.data.validation_size, made.data.test_size) == (1400, 300, 300)
    training = made.training
    assert (training.epochs, training.learning_rate, training.batch_size) == (25, 5e-5, 8)
    assert (training.warmup, training.schedule, made.encoder.dropout) == (0.0, "linear", "keep")


def test_every_shipped_recipe_loads() -> None:
    names = {file.stem for file in (ROOT / "recipes").glob("*.toml")}
    assert names == {"demo", "imdb-one-pass", "imdb-bert-base-cased", "imdb-bert-base-uncased", "rotten-tomatoes"}
    for name in names:
        assert recipe.load(recipe.shipped(name)).name == name
