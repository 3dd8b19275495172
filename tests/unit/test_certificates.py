from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trustme

from proxy.engines.certificates import PEM, spread_out

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is spread out")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.pem"
    path.write_bytes(b"".join(trustme.CA().cert_pem.bytes() for _ in range(3)))
    return path


def test_the_file_has_one_authority_and_the_folder_all_of_them(bundle: Path, tmp_path: Path):
    variables = spread_out(tmp_path / "made", bundle)
    one = Path(variables["SSL_CERT_FILE"]).read_text()
    (all_of_them,) = Path(variables["SSL_CERT_DIR"]).iterdir()
    wanted = PEM.findall(bundle.read_text())
    assert PEM.findall(one) == wanted[:1]
    assert PEM.findall(all_of_them.read_text()) == wanted


def test_they_may_be_read_by_a_codex_that_runs_as_another_user(bundle: Path, tmp_path: Path):
    variables = spread_out(tmp_path / "made", bundle)
    assert Path(variables["SSL_CERT_FILE"]).stat().st_mode & 0o777 == 0o644
    assert Path(variables["SSL_CERT_DIR"]).stat().st_mode & 0o755 == 0o755


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_without_authorities_nothing_is_named(text: str, tmp_path: Path):
    (tmp_path / "bundle.pem").write_text(text)
    assert spread_out(tmp_path, tmp_path / "bundle.pem") == {}
    assert spread_out(tmp_path, tmp_path / "missing.pem") == {}
