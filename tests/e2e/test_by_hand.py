"""`mpcache party` by hand with keys of `mpcache keys`: the answer, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpcache.parties.local import loopback_addresses
from mpcache.parties.tls import make_keys

from .conftest import CANARY, LONG_PROMPT, PROMPT, Start
from .processes import LIMIT, WAIT, Running, all_there, wait_for
from .tiny import HIDDEN, save_tiny

Deploy = Callable[..., list[Running]]


@pytest.fixture
def deploy(start: Start, tiny: Path, tmp_path: Path) -> Deploy:
    """Start every party in a folder of its own, with its own copy of configuration and keys.

    ``changes`` maps a rank to other values of its configuration, ``spoil`` may change a folder.
    """

    def begin(
        parties: int,
        protocol: str = "crypten",
        prompt: str = PROMPT,
        new_tokens: int = 3,
        changes: dict[int, dict[str, Any]] | None = None,
        spoil: Callable[[int, Path], None] = lambda rank, folder: None,
        addresses: list[str] | None = None,
        last_after_the_others: bool = False,
        timeout_s: float = WAIT,
    ) -> list[Running]:
        running = []
        processes = parties + (protocol == "dealer")
        make_keys(tmp_path / "keys", processes, days=1)
        hosts = addresses or [f"{host}:{port}" for host, port in loopback_addresses(processes)]
        for rank in range(processes):
            folder = tmp_path / f"host-{rank}"
            shutil.copytree(tiny, folder / "model")
            shutil.copytree(tmp_path / "keys", folder / "keys")
            for other in set(range(processes)) - {rank}:
                (folder / "keys" / f"party-{other}.key").unlink()
            values = {
                "parties": parties,
                "protocol": protocol,
                "model": "model",
                "max_new_tokens": new_tokens,
                "network": {"addresses": hosts, "keys": "keys", "timeout_s": timeout_s},
                **(changes or {}).get(rank, {}),
            }
            (folder / "run.yaml").write_text(yaml.safe_dump(values))
            (folder / "prompt.txt").write_text(prompt)
            spoil(rank, folder)
            if last_after_the_others and rank == parties - 1:
                assert wait_for(lambda: connected(int(hosts[0].rpartition(":")[2])))
            client = ("--prompt-file", "prompt.txt") if rank == 1 else ()
            program = ("party", "--rank", str(rank)) if rank < parties else ("deal",)
            arguments = (*program, "--config", "run.yaml", *client)
            running.append(start(*arguments, "--set", f"report={folder / 'out'}", cwd=folder))
        return running

    return begin


def connected(port: int) -> bool:
    """Whether somebody has connected to a port of this host."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def all_end(parties: list[Running]) -> None:
    """Every party ends within the limit, counted from when all are there to talk."""
    there = all_there(parties)
    for party in parties:
        assert party.end(there, LIMIT) == 1, party.err
        assert "Traceback" not in party.err
        assert CANARY not in party.out + party.err


@pytest.mark.parametrize(("count", "protocol"), [(2, "crypten"), (3, "crypten"), (2, "dealer")])
def test_parties_started_by_hand(
    deploy: Deploy, start: Start, tiny: Path, tmp_path: Path, count: int, protocol: str
) -> None:
    running = deploy(count, protocol)
    for process in running:
        assert process.end() == 0, process.err
        assert CANARY not in process.out + process.err
    parties = running[:count]
    for rank, party in enumerate(parties):
        record = json.loads((tmp_path / f"host-{rank}" / "out" / f"party-{rank}.json").read_text())
        assert f"transcript {record['transcript'][:12]}" in party.err
        assert (record["token_ids"] != []) == (rank == 1)
        assert party.out.strip().isalpha() if rank == 1 else party.out == ""
    plain = start(
        *("generate", "--model", tiny, "--prompt", PROMPT, "--max-new-tokens", "3"),
    )
    assert plain.end() == 0
    assert plain.out.splitlines()[0] == parties[1].out.strip()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_party_ends_its_peer(deploy: Deploy, victim: int) -> None:
    """Party 0 dies in prefill, party 1 in decode."""
    parties = deploy(2, prompt=LONG_PROMPT, new_tokens=16)
    if victim == 0:
        parties[0].until("prefill/layer0", "err")
    else:
        parties[1].until_any("out")
    killed = parties[victim].signal(signal.SIGKILL)
    peer = parties[1 - victim]
    assert peer.end(killed, LIMIT) == 1
    where = "prefill/layer" if victim == 0 else "decode/"
    assert f"error: party {victim}: the connection ended (at {where}" in peer.err
    assert "Traceback" not in peer.err


def test_an_interrupted_party_says_so_to_its_peer(deploy: Deploy) -> None:
    parties = deploy(2, prompt=LONG_PROMPT, new_tokens=16)
    parties[0].until("prefill/layer1", "err")
    stopped = parties[1].signal(signal.SIGINT)
    assert [party.end(stopped, LIMIT) for party in parties] == [1, 130]
    assert "error: party 1: stopped: KeyboardInterrupt (at prefill/" in parties[0].err
    assert "error: interrupted" in parties[1].err


def test_another_configuration(deploy: Deploy) -> None:
    """Of three parties one has another alpha; the other two have met before it comes."""
    parties = deploy(3, changes={2: {"cache": {"alpha": 0.5}}}, last_after_the_others=True)
    all_end(parties)
    for party in parties[:2]:
        assert re.search(r"error: party [012]: .*\(at (handshake|connect)\)", party.err)
    assert "error: party 2: refused: config_digest differs: " in parties[0].err
    assert re.search("error: party 0: refused.*: config_digest differs: ", parties[2].err)


def test_another_model(deploy: Deploy, tmp_path: Path) -> None:
    save_tiny(tmp_path / "wider", hidden=2 * HIDDEN)

    def swap(rank: int, folder: Path) -> None:
        if rank == 1:
            shutil.rmtree(folder / "model")
            shutil.copytree(tmp_path / "wider", folder / "model")

    parties = deploy(2, spoil=swap)
    all_end(parties)
    for party, peer in zip(parties, ("party 1", "party 0"), strict=True):
        assert f"error: {peer}: " in party.err
        assert "model_digest differs" in party.err
        assert "(at handshake)" in party.err


def test_a_certificate_of_another_authority(deploy: Deploy, tmp_path: Path) -> None:
    make_keys(tmp_path / "foreign", 2, days=1)

    def swap(rank: int, folder: Path) -> None:
        if rank == 1:
            shutil.rmtree(folder / "keys")
            shutil.copytree(tmp_path / "foreign", folder / "keys")

    parties = deploy(2, spoil=swap)
    all_end(parties)
    for party, peer in zip(parties, ("party 1", "party 0"), strict=True):
        assert f"error: {peer}: " in party.err
        assert "certificate" in party.err
        assert "(at handshake)" in party.err


def test_a_certificate_of_another_rank(deploy: Deploy, tmp_path: Path) -> None:
    def swap(rank: int, folder: Path) -> None:
        if rank == 1:
            for end in ("pem", "key"):
                shutil.copy(
                    tmp_path / "keys" / f"party-0.{end}", folder / "keys" / f"party-1.{end}"
                )

    parties = deploy(2, spoil=swap)
    all_end(parties)
    why = "the certificate is for party-0.mpcache, not for party-1.mpcache"
    assert f"error: party 1: refused: {why} (at handshake)" in parties[0].err
    assert f"error: party 0: refused this party: {why} (at handshake)" in parties[1].err


def test_a_port_in_use(deploy: Deploy) -> None:
    """Something else listens there, takes the connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        parties = deploy(2, addresses=[address, "127.0.0.1:9"], timeout_s=5)
        all_end(parties)
    assert f"error: cannot listen on {address}: the address is in use" in parties[0].err
    assert "error: party 0: " in parties[1].err
    assert "(at handshake)" in parties[1].err
