"""What the pilot says of cards that no machine can have, before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.agent.ending import Ending
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.network.attachment import MOST, Attachment
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Manifest, Nic, Reason
from gridhypervisor.planning.network import Network, nic_of
from tests.contract.relay_peer import manifest

NIC = nic_of(Network(7, "10.42.0.0/24", "lab.internal"), 1, "head")


def attach(folder: Path, *nics: Nic) -> Attachment:
    made = replace(wire.from_plain(Manifest, manifest("inst-1")), nics=nics)
    return Attachment(made, folder / "inst-1", folder, Loop(), lambda words: None)


@pytest.mark.parametrize(
    "nics",
    [
        (replace(NIC, mac="nonsense"),),
        (replace(NIC, address="10.42.0.256"),),
        (replace(NIC, resolver=""),),
        (replace(NIC, mtu=70_000),),
        (replace(NIC, mtu=68),),
        (replace(NIC, prefix=31),),
        (replace(NIC, member=0),),
        (NIC,) * (MOST + 1),
    ],
)
def test_cards_that_cannot_be_are_a_fault_of_the_manifest(nics: tuple[Nic, ...], tmp_path: Path) -> None:
    with pytest.raises(Ending) as caught:
        attach(tmp_path, *nics)
    assert caught.value.reason is Reason.MANIFEST
    assert caught.value.hint


def test_every_card_has_a_socket_for_the_hypervisor(tmp_path: Path) -> None:
    made = attach(tmp_path, NIC, replace(NIC, network=8))
    assert len(set(made.cards)) == 2
    made.end()
