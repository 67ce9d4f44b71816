import pytest

from cluster.errors import ConfigError
from cluster.hardware.catalogue import catalogue, gpu
from cluster.hardware.engine_constants import engine_constants, engine_table


def test_every_row_says_where_it_comes_from() -> None:
    for spec in catalogue().values():
        assert spec.spec_source and spec.price_source and spec.price_date
        assert spec.price_low_usd_h <= spec.price_usd_h <= spec.price_high_usd_h
    for row in engine_table().values():
        assert row.source and row.date


def test_a_price_can_be_overridden_and_nothing_unknown() -> None:
    assert gpu("H100-SXM").with_overrides(price_usd_h=2.0).price_usd_h == 2.0
    with pytest.raises(ConfigError, match="pric"):
        gpu("H100-SXM").with_overrides(pric=2.0)
    with pytest.raises(ConfigError, match="expected >= 0"):
        gpu("H100-SXM").with_overrides(price_usd_h=-1.0)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match="H100-SXM"):
        gpu("H1000")
    with pytest.raises(ConfigError, match="vllm"):
        engine_constants("vlm")
    with pytest.raises(ConfigError, match="gemm_share"):
        engine_constants("vllm").with_overrides(gem_share=0.5)


def test_fp8_falls_back_where_there_is_none() -> None:
    assert gpu("A100-SXM-80").flops(fp8=True) == gpu("A100-SXM-80").bf16_flops
    assert gpu("L40S").peer_bytes_per_s == gpu("L40S").pcie_bytes_per_s
