"""The fixed-point twin beside the parties, and what it rounds."""

from __future__ import annotations

import pytest
import torch
from protocols.test_dealer_runs import LOGITS
from protocols.tiny import FULL, MPCACHE, PROMPT, SPECS, config, run, weights

from mpcache.evaluation.fixed import FixedMachine
from mpcache.generation import Request, generate
from mpcache.models.decoder import load_weights
from mpcache.models.spec import ModelSpec
from mpcache.program import Twin, policy_of, setting_of
from mpcache.protocols.arithmetic import linear, multiply, product
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

UNIT = 2.0**-16


@pytest.mark.parametrize("cache", [MPCACHE, FULL], ids=["mpcache", "full"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_within_the_declared_bound_of_two_parties(
    spec: ModelSpec, cache: dict[str, object]
) -> None:
    settings = config(2, cache, protocol="dealer", verify=True)
    client = run(settings, spec)[1].generation
    machine = FixedMachine(setting_of(settings))
    model = load_weights(machine, spec, weights(spec))
    request = Request(
        PROMPT, len(PROMPT), settings.max_new_tokens, forced=client.ids, keep_logits=True
    )
    fixed = generate(machine, model, policy_of(settings, len(PROMPT)), request)
    exact = Twin(settings, spec, weights(spec)).generate(PROMPT, forced=client.ids)
    assert fixed.ids == client.ids and machine.saturated == 0
    for opened, got, plain in zip(client.logits, fixed.logits, exact.logits, strict=True):
        got = got.reshape(-1)
        assert float((opened - got).abs().max()) < LOGITS
        assert torch.equal(got, torch.round(got / UNIT) * UNIT)
        assert 0 < float((plain.reshape(-1) - got).abs().max()) < LOGITS


def test_outputs_have_the_setting_s_bits_and_stay_in_range() -> None:
    machine = FixedMachine(Setting(frac=8))
    x = torch.tensor([0.3, -2.7, 2.0**40])
    assert torch.equal(
        multiply(machine, x[:2], x[:2]), torch.round(x[:2].double() ** 2 * 256) / 256
    )
    assert machine.saturated == 0
    assert multiply(machine, x, x)[2] == 2.0**46
    assert machine.saturated == 1
    assert machine.shift(torch.zeros(1), 0.001).item() == 0.0


def test_what_keeps_its_bits_has_twice_as_many() -> None:
    machine = FixedMachine(Setting(frac=8))
    x, y = torch.tensor([[3 / 256]]), torch.tensor([[5 / 256]])
    assert product(machine, x, y).item() == 15 / 65536
    assert linear(machine, x, y, None, settled=False).item() == 15 / 65536
    assert linear(machine, x, y).item() == 0.0
    assert linear(PlainMachine(Setting()), x, y).item() == pytest.approx(15 / 65536)


def test_fewer_bits_move_the_logits_further() -> None:
    spec, errors = SPECS["llama"], []
    exact = Twin(config(2), spec, weights(spec)).generate(PROMPT, forced=[5, 9, 1])
    for frac in (20, 16, 8):
        machine = FixedMachine(Setting(frac=frac))
        request = Request(PROMPT, len(PROMPT), 3, forced=[5, 9, 1], keep_logits=True)
        model = load_weights(machine, spec, weights(spec))
        got = generate(machine, model, policy_of(config(2), len(PROMPT)), request)
        pairs = zip(got.logits, exact.logits, strict=True)
        errors.append(max(float((a - b).abs().max()) for a, b in pairs))
    assert errors[0] < errors[1] / 4 and errors[1] < errors[2] / 30
