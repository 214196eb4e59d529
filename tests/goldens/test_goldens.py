"""Both trees against recorded computations of the reference, through the same code as `python -m tools.parity
golden`.
"""

import json

import pytest

from tools.parity.__main__ import main
from tools.parity.golden import check_case
from tools.parity.goldens import CARRIED, SHARED, find_folder, select

FOLDER = find_folder()
RELEASED = "scale_wfvae"  # the VAE at its released size; the transformers take too much memory for a test
QUICK_IN_MS = (  # compiled in seconds; the rest of the ms cases (32 layers, whole VAEs) are slow
    "wavelets",
    "diagonal_gaussian",
    "skiparse_index",
    "prepare_sparse_mask",
    "rope3d",
    "schedulers",
    "captions",
    "data_buckets",
    "data_functions",
    "data_transforms",
    "data_items",
    "collate",
    "group_sampler",
    "mask_processor",
    "mask_compressor",
    "gaussian_noise_adder",
    "gaussian_noise_adder_skipped",
    "ema",
    "metrics_psnr_ssim",
    "text_encoder_mt5",
    "dit_block_n4_group",
    "dit_block_n4_single",
    "wfvae_nearest_f9",
)


def cases():
    if FOLDER is None:
        return [
            pytest.param("ms", "none", marks=pytest.mark.skip(reason="no golden folder in this checkout"))
        ]
    parameters = []
    for name in dict.fromkeys([*select(FOLDER), RELEASED]):
        slow = [] if name in QUICK_IN_MS else [pytest.mark.slow]
        parameters.append(pytest.param("pt", name, marks=pytest.mark.pt, id=f"pt-{name}"))
        parameters.append(pytest.param("ms", name, marks=[pytest.mark.ms, *slow], id=f"ms-{name}"))
    return parameters


@pytest.mark.parametrize(("tree", "name"), cases(), indirect=["tree"])
def test_golden(tree, name):
    result = check_case(tree, CARRIED if name == RELEASED else FOLDER, name)
    failed = [v for v in result.verdicts if not v.passed]
    assert result.verdicts
    assert not failed, "\n".join(map(str, failed))
    assert result.passed, "nothing was compared"


@pytest.mark.pt
def test_recordings_of_other_versions_are_counted_and_end_no_run(tmp_path, capsys):
    """What this version cannot run is not implemented, which is not passed."""
    folder, measured = SHARED / "goldens_versions", tmp_path / "versions.json"
    if not folder.is_dir():
        pytest.skip("the recordings of other versions are not beside this checkout")
    assert main(["golden", str(folder), "--tree", "pt", "--json", str(measured)]) == 1
    out, results = capsys.readouterr().out, json.loads(measured.read_text())
    assert [result["case"] for result in results] == list(select(folder))
    absent = [result for result in results if result["state"] == "not implemented"]
    assert f"{len(results) - len(absent)} passed, 0 failed, {len(absent)} not implemented" in out
    assert all(output["note"] for result in absent for output in result["outputs"]), "each with its reason"


@pytest.mark.pt
def test_a_kink_is_why_one_case_has_a_wider_tolerance():
    """With float64 arithmetic every output is within the recording's own tolerance."""
    if FOLDER is None or "vae_loss_gen_l1_wavelet" not in select(FOLDER):
        pytest.skip("the case is not among the goldens here")
    from tools.parity.tree import Tree

    result = check_case(Tree("pt", dtype="float64"), FOLDER, "vae_loss_gen_l1_wavelet")
    assert not [v for v in result.verdicts if not v.passed]
