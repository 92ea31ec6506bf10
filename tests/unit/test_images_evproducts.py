"""The science task of the `xmm` image on this machine, against an independent reading of the same event list."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

EVPRODUCTS = Path(__file__).parents[2] / "examples" / "images" / "xmm" / "evproducts"
EVENTS = 20_000


def fits_header(*cards: tuple[str, object]) -> bytes:
    def text(value: object) -> str:
        if isinstance(value, bool):
            return f"{'T' if value else 'F':>20}"
        return f"'{value:<8}'" if isinstance(value, str) else f"{value!s:>20}"

    joined = "".join(f"{f'{key:<8}= {text(value)}':<80}" for key, value in cards) + f"{'END':<80}"
    return joined.encode().ljust(-(-len(joined) // 2880) * 2880)


def event_list(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write an event list like the mission's; return its times (s) and energies (eV)."""
    random = np.random.default_rng(2007)
    times = np.sort(random.uniform(-0.5, 1024.5, EVENTS))
    energies = random.integers(0, 12_000, EVENTS)
    rows = np.zeros(EVENTS, dtype=[("time", ">f8"), ("ccd", ">i4"), ("pi", ">i4")])
    rows["time"], rows["pi"] = times, energies
    data = rows.tobytes()
    path.write_bytes(
        fits_header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True))
        + fits_header(
            ("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", rows.dtype.itemsize), ("NAXIS2", EVENTS),
            ("PCOUNT", 0), ("GCOUNT", 1), ("TFIELDS", 3), ("TTYPE1", "TIME"), ("TFORM1", "1D"), ("TTYPE2", "CCDNR"),
            ("TFORM2", "1J"), ("TTYPE3", "PI"), ("TFORM3", "1J"), ("EXTNAME", "EVENTS"),
        )
        + data.ljust(-(-len(data) // 2880) * 2880, b"\0")
    )  # fmt: skip
    return times, energies


def evproducts(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EVPRODUCTS, *argv], cwd=folder, capture_output=True, text=True, check=False)


def table(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)


def test_the_products_are_the_events_counted(tmp_path: Path) -> None:
    times, energies = event_list(tmp_path / "events.fits")
    done = evproducts(tmp_path, "events.fits")
    assert done.returncode == 0, done.stderr

    spectrum = table(tmp_path / "products/spectrum.csv")
    assert np.array_equal(spectrum[:, 2], np.bincount(energies // 5))
    assert np.array_equal(spectrum[:, 0], 5 * np.arange(len(spectrum)))

    chosen = times[(energies >= 300) & (energies <= 10_000)]
    curve = table(tmp_path / "products/lightcurve.csv")
    assert np.array_equal(curve[:, 2], np.bincount(((chosen - times[0]) // 100).astype(int)))
    assert np.allclose(curve[:, 0], times[0] + 100 * np.arange(len(curve)), atol=1e-6)
    assert np.allclose(curve[:, 1] - curve[:, 0], 100)
    assert done.stdout.splitlines() == [
        f"spectrum: {EVENTS} events in {len(spectrum)} bins of 5 eV",
        f"lightcurve: {len(chosen)} events in {len(curve)} bins of 100 s",
    ]


def test_energies_and_widths_are_options(tmp_path: Path) -> None:
    times, energies = event_list(tmp_path / "events.fits")
    done = evproducts(tmp_path, "--energy", "2000:2500", "--bin", "12.5", "--channel", "50", "events.fits")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(table(tmp_path / "products/spectrum.csv")[:, 2], np.bincount(energies // 50))
    chosen = times[(energies >= 2000) & (energies <= 2500)]
    curve = table(tmp_path / "products/lightcurve.csv")
    counted = np.bincount(((chosen - times[0]) // 12.5).astype(int), minlength=len(curve))
    assert np.array_equal(curve[:, 2], counted)


def test_the_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    event_list(tmp_path / "events.fits")
    evproducts(tmp_path, "events.fits")
    first = {path.name: path.read_bytes() for path in (tmp_path / "products").iterdir()}
    assert set(first) == {"spectrum.fits", "spectrum.csv", "lightcurve.fits", "lightcurve.csv"}
    evproducts(tmp_path, "events.fits")
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "products").iterdir()}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "usage: evproducts EVENTS.fits"),
        (["gone.fits"], "cannot read gone.fits"),
        (["events.fits", "--bin", "wide"], "--bin must be a number, not 'wide'"),
        (["events.fits", "--energy", "300"], "--energy is LOW:HIGH"),
        (["events.fits", "--what"], "unknown option --what"),
        (["text.fits"], "cannot make products/spectrum.fits; the reason is above"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, argv: list[str], says: str) -> None:
    event_list(tmp_path / "events.fits")
    (tmp_path / "text.fits").write_text("no event list")
    done = evproducts(tmp_path, *argv)
    assert done.returncode == 2
    assert says in done.stderr
