"""Which models are in memory within a budget."""

from __future__ import annotations

import json
import threading
import weakref

import pytest

from specmoe.specialists.bases import load_quantized
from specmoe.specialists.runtime import FamilyError, members_of
from specmoe.specialists.runtime.residents import Residents


def budget_of(members, *names):
    """Returns the bytes that models need, to the byte."""
    return Residents(members, 1 << 40).bytes_of(names)


def use(residents, *names):
    with residents.using(names):
        pass
    return residents.names


def test_members(family, other_bases):
    shared, own = members_of(family), members_of(other_bases)
    assert list(shared) == list(own) == ["coordinator", "ascii", "runic"]
    assert {member.base for member in shared.values()} == {family / "base-nf4"}
    assert len({member.base for member in own.values()}) == 3
    assert shared["runic"].adapter == family / "runic" / "model" and own["runic"].adapter is None
    sizes = [path.stat().st_size for path in (family / "base-nf4").glob("*.safetensors")]
    assert shared["ascii"].base_bytes == sum(sizes)


def test_models_that_were_about_to_be_replaced(tmp_path):
    adapter, base = tmp_path / "coordinator" / ".replaced-model", tmp_path / ".replaced-base-nf4"
    adapter.mkdir(parents=True)
    base.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (base / "model.safetensors").write_text("x")
    found = members_of(tmp_path)["coordinator"]
    assert found.adapter == tmp_path / "coordinator" / "model" and found.base_bytes == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("away")), "found no such folder"),
        (lambda folder: folder.mkdir(exist_ok=True), "expected coordinator/model"),
        (
            lambda folder: (folder / "coordinator").mkdir() or (folder / "coordinator/specialist.json").write_text("{"),
            "expected an object with a base",
        ),
        (
            lambda folder: (
                (folder / "coordinator").mkdir()
                or (folder / "coordinator/specialist.json").write_text(json.dumps({"base": "x"}))
            ),
            "expected the weights of its base",
        ),
    ],
    ids=["no-folder", "empty", "damaged", "no-base"],
)
def test_a_missing_model(tmp_path, spoil, message):
    folder = tmp_path / "family"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(FamilyError, match=message):
        members_of(folder)


def test_a_shared_base_counts_once(family):
    members = members_of(family)
    whole = budget_of(members, *members)
    adapters = sum(member.adapter_bytes for member in members.values())
    assert whole == members["runic"].base_bytes + adapters


def test_a_budget_too_small_says_what_is_needed(other_bases):
    members = members_of(other_bases)
    need = budget_of(members, "coordinator", "ascii")
    Residents(members, need)
    with pytest.raises(ValueError, match=r"expected at least .* for models \(coordinator with ascii\), got "):
        Residents(members, need - 1)


def test_the_least_recently_used_goes_and_the_coordinator_stays(other_bases):
    members = members_of(other_bases)
    opened = []
    residents = Residents(
        members, budget_of(members, "coordinator", "ascii"), lambda path: opened.append(path) or load_quantized(path)
    )
    assert use(residents, "ascii") == ("ascii",)
    assert use(residents, "coordinator") == ("ascii", "coordinator")
    assert use(residents, "runic") == ("coordinator", "runic")
    assert use(residents, "ascii") == ("coordinator", "ascii")
    assert use(residents, "coordinator") == ("ascii", "coordinator")
    assert [path.parent.name for path in opened] == ["ascii", "coordinator", "runic", "ascii"]
    assert residents.bytes_of(residents.names) <= residents.budget
    residents.close()
    assert residents.names == ()


def test_what_went_is_freed_whoever_holds_it(other_bases):
    members = members_of(other_bases)
    residents = Residents(members, budget_of(members, "coordinator", "ascii"))
    with residents.using(["ascii"]) as held:
        model = weakref.ref(held.base.model)
    use(residents, "runic")
    assert model() is None


def test_adapters_come_and_go_on_a_base_that_stays(family):
    members = members_of(family)
    opened = []
    residents = Residents(
        members, budget_of(members, "coordinator", "ascii"), lambda path: opened.append(path) or load_quantized(path)
    )
    for name in ("coordinator", "ascii", "runic", "ascii"):
        with residents.using([name]) as loaded:
            assert name in loaded.names and len(loaded.names) <= 2
            kept = loaded.bank.adapter(name).factors
    assert residents.names == ("coordinator", "ascii") and len(opened) == 1
    residents.forget("ascii")
    with residents.using(["ascii"]) as loaded:
        again = loaded.bank.adapter("ascii").factors
    assert all((a == b).all() for key in kept for a, b in zip(kept[key], again[key], strict=True))


def test_together(family, other_bases):
    shared = members_of(family)
    names = ["runic", "ascii", "runic", "coordinator"]
    assert Residents(shared, 1 << 40).together(names) == [["runic", "ascii", "coordinator"]]
    tight = Residents(shared, budget_of(shared, "coordinator", "ascii"))
    assert tight.together(names) == [["runic", "coordinator"], ["ascii"]]
    assert Residents(members_of(other_bases), 1 << 40).together(names) == [["runic"], ["ascii"], ["coordinator"]]


def test_a_load_in_the_background(other_bases):
    members = members_of(other_bases)
    residents = Residents(members, budget_of(members, "coordinator", "ascii"))
    use(residents, "coordinator")
    with residents.using(["coordinator"]):
        # Another model is loaded while this one is in use.
        residents.expect("runic")
        residents.wait()
        assert residents.names == ("coordinator", "runic")
    loads = residents.loads
    use(residents, "runic")
    assert residents.loads == loads


def test_what_is_in_use_is_not_pushed_out(other_bases):
    members = members_of(other_bases)
    residents = Residents(members, budget_of(members, "coordinator", "ascii"))
    done = threading.Event()
    with residents.using(["ascii"]):
        residents.expect("runic")
        residents.wait()
        assert "runic" not in residents.names
        waiting = threading.Thread(target=lambda: (use(residents, "runic"), done.set()))
        waiting.start()
        assert not done.wait(0.2)
    waiting.join(60)
    assert done.is_set() and residents.names == ("runic",)


def test_a_damaged_model_is_told_when_it_is_used(family, tmp_path):
    import shutil

    shutil.copytree(family, tmp_path / "family")
    weights = tmp_path / "family" / "runic" / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    residents = Residents(members_of(tmp_path / "family"), 1 << 40)
    use(residents, "ascii")
    residents.expect("runic")
    residents.wait()
    with pytest.raises(ValueError, match="adapter_model.safetensors: expected"):
        use(residents, "runic")
    assert use(residents, "ascii") == ("ascii",)
