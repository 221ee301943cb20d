"""A family of tiny untrained models: what they say is meaningless, but who says it is not."""

from __future__ import annotations

import pytest
import torch

from moe_kernels.testing import relative_error
from specmoe.specialists.corpora import SPECIALISTS
from specmoe.specialists.runtime import FamilyError, Policy, Reply, SpecialistRouter
from specmoe.specialists.runtime.answering import Ask
from specmoe.specialists.runtime.generation import Asking
from specmoe.specialists.runtime.members import members_of
from specmoe.specialists.runtime.residents import Residents
from specmoe.training.data import collate, encode_prompt

pytestmark = pytest.mark.usefixtures("short_answers")
TEXTS = ["Convert to LC-R: [1, 2]", "What is LC-T?", "Convert to LC-T: {x: 10}", 'Convert to LC-B: "hi"', "Hello"]
NAMES = ["runic", "coordinator", "ascii", "coordinator", "runic"]


def asking(folder, **options):
    return Asking(Residents(members_of(folder), 1 << 40), Policy(), **options)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_mixed_batch_is_what_each_says_alone(family, batch_size):
    asks = [Ask(name, text) for name, text in zip(NAMES, TEXTS, strict=True)]
    together = asking(family, batch_size=batch_size)(asks)
    alone = [asking(family)([ask])[0] for ask in asks]
    assert together == alone
    # Different adapters do say different things.
    others = asking(family)([Ask("ascii", text) for text in TEXTS])
    assert sum(a != b for a, b in zip(together, others, strict=True)) >= 3


@torch.no_grad()
def test_logits_of_a_mixed_batch(family):
    residents = Residents(members_of(family), 1 << 40)
    with residents.using(["coordinator", "ascii", "runic"]) as loaded:
        encoded = [encode_prompt(loaded.base.tokenizer, [{"role": "user", "content": text}]) for text in TEXTS]
        batch = collate([{"input_ids": ids, "labels": ids} for ids in encoded], 0)
        with loaded.rows(NAMES):
            together = loaded.base.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row, (name, ids) in enumerate(zip(NAMES, encoded, strict=True)):
            with loaded.rows([name]):
                alone = loaded.base.model(torch.tensor([ids])).logits[0]
            assert relative_error(together[row, : len(ids)], alone) < 1e-5


def test_bases_of_their_own(other_bases):
    ask = asking(other_bases)
    asks = [Ask(name, "Hello") for name in ("runic", "ascii", "runic")]
    replies = ask(asks)
    assert replies[0] == replies[2] != replies[1]
    assert set(ask.residents.names) == {"runic", "ascii"}


def test_draws_come_from_the_seed(family):
    asks = [Ask("runic", "Hello", draw) for draw in (1, 2, 3)]
    first, again = asking(family)(asks), asking(family)(asks)
    assert first == again and len({reply.text for reply in first}) > 1


def test_a_query_longer_than_the_context(family):
    (reply,) = asking(family)([Ask("runic", "abc " * 200)])
    assert reply.text == "" and "tokens, the model takes less than 256" in reply.problem


@pytest.mark.parametrize("routing", ["rules", "trained", "confidence"])
def test_queries(family, routing, monkeypatch):
    import specmoe.specialists.runtime.router as module

    monkeypatch.setattr(module, "_ROUTER_PROMPTS", 60)
    policy = Policy(samples=1, votes=1)
    with SpecialistRouter(family, "64GiB", routing=routing, policy=policy) as router:
        answers = router.query_batch([*TEXTS, "", "\0\ud83d nonsense [[["])
        assert answers[6].query == "\0? nonsense [[["
        assert len(answers) == 7 and answers[5].reason == "the query is empty"
        for answer in answers[:5]:
            assert answer.attempts and set(each.specialist for each in answer.attempts) <= set(SPECIALISTS)
            assert answer.abstained == (not answer.text)
        # What is drawn depends on the batch; what is likeliest does not.
        assert router.query(TEXTS[0]).attempts[0] == answers[0].attempts[0]
    assert routing == "rules" or (family / "router.npz").is_file()


def test_an_expected_specialist_is_there(family):
    with SpecialistRouter(family, "64GiB") as router:
        router.expect("Convert to LC-R: [1")
        router.residents.wait()
        assert router.residents.names == ("runic",)


def test_verified_by_the_codec(family, monkeypatch):
    monkeypatch.setattr(Asking, "__call__", lambda self, asks: [Reply("🐃1, 2🐄") for _ in asks])
    with SpecialistRouter(family, "64GiB") as router:
        answer = router.query(TEXTS[0])
    assert (answer.text, answer.specialist, answer.verified) == ("🐃1, 2🐄", "runic", True)
    assert answer.route.domain == "runic"


def test_a_budget_too_small(family):
    with pytest.raises(ValueError, match=r"memory: expected at least .*KiB for models .* of 1.0 MiB, of which .*own"):
        SpecialistRouter(family, "1MiB")
    members = members_of(family)
    need = Residents(members, 1 << 40).bytes_of(["coordinator", "ascii"])
    SpecialistRouter(family, need, reserve=0).close()
    with pytest.raises(ValueError, match="memory: expected at least"):
        SpecialistRouter(family, need - 1, reserve=0)


def test_wrong_options(family, tmp_path):
    with pytest.raises(ValueError, match="routing: expected rules, trained, confidence, got 'x'"):
        SpecialistRouter(family, routing="x")
    with pytest.raises(FamilyError, match="found no such folder"):
        SpecialistRouter(tmp_path / "none")
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        SpecialistRouter(family, "64GiB", batch_size=0)
