"""Old public names work for one version and say their new ones."""

from __future__ import annotations

import pytest
from small_models import small_model

from speech_adapters.heads.ctc import CTCHead


def test_old_names_warn_and_do_what_the_new_ones_do(tmp_path):
    model = small_model(method="lora")
    for head in ("one", "two"):
        model.add_head(head, CTCHead())
    for old, new, arguments in (
        ("places", "hooks", ("a",)),
        ("save_merged", "save_folded", ("a", tmp_path / "stock")),
        ("merge_adapters", "average_adapters", ("b", {"a": 1.0})),
        ("merge_heads", "average_heads", ("both", {"one": 0.5, "two": 0.5})),
        ("merge_adapter", "fold_adapter", ("a",)),
        ("unmerge_adapter", "unfold_adapter", ()),
    ):
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; the old name goes") as caught:
            found = getattr(model, old)(*arguments)
        assert caught[0].filename == __file__
        if old == "places":
            assert found is model.adapters["a"]
        if old == "merge_adapter":
            with pytest.warns(DeprecationWarning, match="merged_adapter is now folded_adapter"):
                assert model.merged_adapter == "a" == model.folded_adapter
    assert (tmp_path / "stock" / "config.json").is_file()
    assert list(model.adapters) == ["a", "b"] and model.active_head == "both" and model.folded_adapter is None
