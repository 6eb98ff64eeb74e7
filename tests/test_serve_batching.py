"""Texts of many requests become batches: within bounds, fair to small requests, and nobody waits for ever."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np
import pytest

from lorafit.predict import TOKENS_PER_BATCH
from lorafit.serve.batching import Batch, Batcher, Request
from lorafit.serve.engines import Item
from lorafit.serve.mixing import Weights
from lorafit.tokens import Tokens

SECONDS = 20  # for what takes milliseconds
Run = Callable[[Sequence[Item]], None]


class Recorder:
    """An engine that answers each text with its first token and its length, and keeps what it was given.

    It stands still before each batch while it is `held`.
    """

    def __init__(self, *, pads: bool = False, on_batch: Run = lambda _: None, held: bool = False) -> None:
        self.pads, self.on_batch = pads, on_batch
        self.batches: list[list[Item]] = []
        self.begun, self.goes_on = threading.Semaphore(0), threading.Event()
        if not held:
            self.goes_on.set()

    def run(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[np.ndarray]]:
        for items in batches:
            self.batches.append(list(items))
            self.begun.release()
            assert self.goes_on.wait(SECONDS)
            self.on_batch(items)
            yield [np.array([item.tokens[item.text][0], item.tokens.lengths[item.text]]) for item in items]

    def wait_until_busy(self) -> None:
        assert self.begun.acquire(timeout=SECONDS)

    @property
    def lengths(self) -> list[list[int]]:
        return [[int(item.tokens.lengths[item.text]) for item in items] for items in self.batches]


class ReadsAhead(Recorder):
    """An engine that takes the next batch before it answers the one before, as exports do."""

    def run(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[np.ndarray]]:
        answers: list[list[np.ndarray]] = []
        for answer in super().run(batches):
            answers.append(answer)
            if len(answers) > 1:
                yield answers.pop(0)
        yield from answers


@dataclass(frozen=True)
class Kept:
    """A batcher and what it counted."""

    batcher: Batcher
    batches: list[Batch]


@pytest.fixture
def kept() -> Iterator[Kept]:
    counted: list[Batch] = []
    batcher = Batcher(counted.append)
    yield Kept(batcher, counted)
    batcher.close()


@pytest.fixture
def batcher(kept: Kept) -> Batcher:
    return kept.batcher


def texts_of(*lengths: int, first: int = 0) -> Tokens:
    """Return texts of these lengths; the first token of each is its number, from `first` on."""
    ids = [np.full(length, first + number, dtype=np.int32) for number, length in enumerate(lengths)]
    return Tokens(np.concatenate(ids), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), cut=0)


def answer_of(request: Request) -> np.ndarray:
    return request.answer.result(SECONDS)


def assert_answers(request: Request) -> None:
    tokens = request.tokens
    expected = [[tokens[text][0], tokens.lengths[text]] for text in range(len(tokens))]
    np.testing.assert_array_equal(answer_of(request), expected)


def weights() -> Weights:
    return Weights(factors={}, head={}, labels=2, long_text="head", reads_the_mean=False)


def test_a_request_gets_its_answers_in_the_order_of_its_texts(batcher: Batcher) -> None:
    assert_answers(batcher.submit(Recorder(), None, texts_of(9, 1, 30, 2, 9)))
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


@pytest.mark.parametrize("pads", [False, True])
def test_one_short_text_is_answered_before_two_hundred_long_ones_that_came_first(batcher: Batcher, pads: bool) -> None:
    done: list[str] = []
    engine = Recorder(pads=pads, held=True)
    many = batcher.submit(engine, None, texts_of(*[500] * 200))
    engine.wait_until_busy()
    one = batcher.submit(engine, None, texts_of(7))
    many.answer.add_done_callback(lambda _: done.append("many"))
    one.answer.add_done_callback(lambda _: done.append("one"))
    engine.goes_on.set()
    assert_answers(many)
    assert_answers(one)
    assert done == ["one", "many"]
    at = next(place for place, items in enumerate(engine.batches) if any(item.tokens is one.tokens for item in items))
    assert at <= 2
    assert len(engine.batches) > 20


def test_a_large_request_does_not_wait_for_all_small_ones_that_come_behind_it(batcher: Batcher) -> None:
    engine = Recorder(held=True)
    batcher.submit(engine, None, texts_of(4000))
    engine.wait_until_busy()
    large = batcher.submit(engine, None, texts_of(*[500] * 20, first=1000))
    small: list[Request] = []
    for _ in range(40):
        small += [batcher.submit(engine, None, texts_of(50)) for _ in range(10)]
        engine.goes_on.set()
    assert_answers(large)
    for request in small:
        assert_answers(request)
    place_of = {id(item.tokens): place for place, items in enumerate(engine.batches) for item in items}
    assert place_of[id(small[0].tokens)] < place_of[id(large.tokens)]


def test_who_gives_up_is_taken_out_and_others_are_answered(batcher: Batcher) -> None:
    engine = Recorder(held=True)
    under_way = batcher.submit(engine, None, texts_of(TOKENS_PER_BATCH))
    engine.wait_until_busy()
    gone, stays = (batcher.submit(engine, None, texts_of(*[300] * 40, first=start)) for start in (100, 200))
    assert batcher.waiting_texts == 80
    assert batcher.waiting_tokens == 80 * 300
    batcher.give_up(gone)
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (40, 12_000)
    engine.goes_on.set()
    assert_answers(under_way)
    assert_answers(stays)
    with pytest.raises(CancelledError):
        answer_of(gone)
    assert not any(item.tokens is gone.tokens for items in engine.batches for item in items)
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


def test_nothing_waits_when_all_have_given_up_and_the_next_request_is_answered(batcher: Batcher) -> None:
    engine = Recorder(held=True)
    first = batcher.submit(engine, None, texts_of(TOKENS_PER_BATCH))
    engine.wait_until_busy()
    others = [batcher.submit(engine, None, texts_of(10, 20)) for _ in range(5)]
    for request in (*others, first, *others):  # twice, and the one that is under way
        batcher.give_up(request)
    assert batcher.waiting_texts == 0
    engine.goes_on.set()
    assert_answers(batcher.submit(engine, None, texts_of(3, 4)))
    assert first.answer.cancelled()
    assert batcher.waiting_texts == 0


def test_an_engine_that_fails_fails_only_the_requests_of_its_batch(batcher: Batcher) -> None:
    def fail_over_sevens(items: Sequence[Item]) -> None:
        if any(item.tokens[item.text][0] == 7 for item in items):
            raise RuntimeError("seven")

    engine = Recorder(on_batch=fail_over_sevens, held=True)
    batcher.submit(engine, None, texts_of(TOKENS_PER_BATCH))
    engine.wait_until_busy()
    broken, with_it = batcher.submit(engine, None, texts_of(1900, first=7)), batcher.submit(engine, None, texts_of(50))
    later = batcher.submit(engine, None, texts_of(4000))
    elsewhere = batcher.submit(Recorder(), None, texts_of(4000))
    engine.goes_on.set()
    for request in (broken, with_it):
        with pytest.raises(RuntimeError, match="seven"):
            answer_of(request)
    assert_answers(later)
    assert_answers(elsewhere)
    assert_answers(batcher.submit(engine, None, texts_of(5)))
    assert batcher.waiting_texts == 0


def test_a_request_in_several_batches_of_which_one_fails_has_failed_and_is_not_answered_twice(batcher: Batcher) -> None:
    failing = iter([False, True, False, False])

    def fail_once(_: Sequence[Item]) -> None:
        if next(failing, False):
            raise RuntimeError("second batch")

    engine = Recorder(on_batch=fail_once)
    with pytest.raises(RuntimeError, match="second batch"):
        answer_of(batcher.submit(engine, None, texts_of(*[4000] * 4)))
    assert_answers(batcher.submit(engine, None, texts_of(1)))


def test_an_engine_that_reads_ahead_fails_all_that_it_has_taken_and_no_more(batcher: Batcher) -> None:
    def fail_over_sevens(items: Sequence[Item]) -> None:
        if any(item.tokens[item.text][0] == 7 for item in items):
            raise RuntimeError("seven")

    engine = ReadsAhead(on_batch=fail_over_sevens)
    with pytest.raises(RuntimeError, match="seven"):
        answer_of(batcher.submit(engine, None, texts_of(4000, 4000, first=6)))
    assert_answers(batcher.submit(engine, None, texts_of(*[3000] * 5, first=10)))


def test_close_answers_everything_that_was_taken_in() -> None:
    batcher, engines = Batcher(), [Recorder(held=True), Recorder(pads=True, held=True)]
    requests = [batcher.submit(engine, None, texts_of(*[400] * 30)) for engine in engines for _ in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    for engine in engines:
        engine.goes_on.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert all(request.answer.done() for request in requests)
    for request in requests:
        assert_answers(request)


def test_a_batcher_without_work_closes_at_once() -> None:
    batcher = Batcher()
    batcher.close()
    assert not batcher._thread.is_alive()


def test_requests_to_two_engines_are_both_answered_and_take_turns(batcher: Batcher) -> None:
    order: list[str] = []
    one, other = (Recorder(on_batch=lambda _, name=name: order.append(name), held=True) for name in ("one", "other"))
    requests = [batcher.submit(engine, None, texts_of(*[1000] * 40)) for engine in (one, other)]
    one.goes_on.set()
    other.goes_on.set()
    for request in requests:
        assert_answers(request)
    assert set(order) == {"one", "other"}
    assert "other" in order[:5], "one engine kept its turn while another's texts waited as long"
    assert "one" in order[-5:]


@pytest.mark.parametrize("lengths", [[100] * 100, [2048, 1, 2047, 2], [1500, 1000, 548, 1], list(range(1, 200))])
def test_a_batch_never_has_more_tokens_than_fit(kept: Kept, lengths: list[int]) -> None:
    engine = Recorder()
    requests = [kept.batcher.submit(engine, weights(), texts_of(*lengths)) for _ in range(3)]
    for request in requests:
        assert_answers(request)
    assert all(sum(batch) <= TOKENS_PER_BATCH for batch in engine.lengths)
    assert sorted(length for batch in engine.lengths for length in batch) == sorted(lengths * 3)
    kept.batcher.close()
    assert [batch.tokens for batch in kept.batches] == [sum(batch) for batch in engine.lengths]
    assert [batch.texts for batch in kept.batches] == [len(batch) for batch in engine.lengths]
    assert all(batch.seconds_waited >= 0 for batch in kept.batches)


@pytest.mark.parametrize("pads", [False, True])
def test_a_text_that_is_larger_than_a_batch_runs_alone(batcher: Batcher, pads: bool) -> None:
    engine = Recorder(pads=pads)
    assert_answers(batcher.submit(engine, None, texts_of(10, 2 * TOKENS_PER_BATCH, 10, TOKENS_PER_BATCH + 1)))
    assert all(len(batch) == 1 for batch in engine.lengths if max(batch) > TOKENS_PER_BATCH)


@pytest.mark.parametrize("seed", range(4))
def test_where_padding_costs_the_longest_times_the_count_fits_and_like_lengths_go_together(
    batcher: Batcher, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    engine = Recorder(pads=True, held=True)
    batcher.submit(engine, None, texts_of(1))
    engine.wait_until_busy()
    lengths = [chance.integers(1, 600, size=60).tolist() for _ in range(10)]
    requests = [batcher.submit(engine, None, texts_of(*some)) for some in lengths]
    engine.goes_on.set()
    for request in requests:
        assert_answers(request)
    assert all(max(batch) * len(batch) <= TOKENS_PER_BATCH for batch in engine.lengths)
    assert sum(max(batch) * len(batch) for batch in engine.lengths) < 1.5 * sum(map(sum, lengths))


def test_texts_of_several_adapters_share_a_batch_and_are_counted(kept: Kept) -> None:
    engine = Recorder(held=True)
    kept.batcher.submit(engine, weights(), texts_of(TOKENS_PER_BATCH))
    engine.wait_until_busy()
    requests = [kept.batcher.submit(engine, weights(), texts_of(10, 10, 10)) for _ in range(5)]
    engine.goes_on.set()
    for request in requests:
        assert_answers(request)
    kept.batcher.close()
    assert [(batch.texts, batch.tokens, batch.adapters) for batch in kept.batches] == [
        (1, TOKENS_PER_BATCH, 1),
        (15, 150, 5),
    ]


def test_many_threads_ask_and_give_up_at_once_and_nothing_is_lost(batcher: Batcher) -> None:
    engines = [Recorder(), Recorder(pads=True), ReadsAhead(pads=True)]
    wrong: list[str] = []

    def ask(number: int) -> None:
        chance = np.random.default_rng(number)
        for _ in range(40):
            request = batcher.submit(
                engines[int(chance.integers(3))],
                None,
                texts_of(*chance.integers(1, 400, size=int(chance.integers(1, 30)))),
            )
            if chance.random() < 0.3:
                batcher.give_up(request)
                continue
            try:
                assert_answers(request)
            except BaseException as error:  # noqa: BLE001 - of a thread, for the test to show
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    batcher.close()
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


def test_how_long_the_queue_takes_is_told_from_the_rate(batcher: Batcher) -> None:
    engine = Recorder(on_batch=lambda _: threading.Event().wait(0.1))
    assert batcher.seconds_left() == 1.0
    assert_answers(batcher.submit(engine, None, texts_of(*[1000] * 4)))
    assert batcher.seconds_left() == 0
    engine.goes_on.clear()
    request = batcher.submit(engine, None, texts_of(*[1000] * 24))
    engine.wait_until_busy()
    engine.wait_until_busy()
    assert 0.2 < batcher.seconds_left() < 2
    engine.goes_on.set()
    assert_answers(request)
