from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import Transport
from kv_transfer.link_expectation import Expectation, LinkFacts, expected, judge

rates = st.floats(1e3, 1e13)
transports = st.sampled_from(list(Transport))


@given(rates, rates, st.floats(0.01, 10), transports)
def test_a_link_is_bad_exactly_below_the_ratio(measured: float, goal: float, min_ratio: float, best: Transport) -> None:
    verdict = judge(
        bytes_per_s=measured,
        used=best.value,
        allowed=list(Transport),
        best=best,
        expectation=Expectation(goal, "a table"),
        min_ratio=min_ratio,
    )
    assert verdict.ratio == measured / goal
    assert verdict.ok == (measured / goal >= min_ratio)
    assert best.value in verdict.sentence
    assert "a table" in verdict.sentence


@given(st.floats(1e8, 1e12))
def test_a_silent_fall_back_is_named(measured: float) -> None:
    verdict = judge(
        bytes_per_s=measured,
        used="tcp",
        allowed=[Transport.RDMA, Transport.TCP],
        best=Transport.RDMA,
        expectation=Expectation(measured * 10, "0.99 of a port of 400 Gb/s"),
        min_ratio=0.5,
    )
    assert not verdict.ok
    assert "fell back to tcp" in verdict.sentence
    assert "UCX_NET_DEVICES" in verdict.sentence


def test_damaged_bytes_fail_whatever_the_speed() -> None:
    verdict = judge(
        bytes_per_s=1e12,
        used="tcp",
        allowed=[Transport.TCP],
        best=Transport.TCP,
        expectation=Expectation(1e9, ""),
        min_ratio=0.5,
        intact=False,
    )
    assert not verdict.ok


def test_no_transport_in_common_fails() -> None:
    verdict = judge(bytes_per_s=0, used="", allowed=[Transport.NVLINK], best=None, expectation=None, min_ratio=0.5)
    assert not verdict.ok
    assert "nvlink" in verdict.sentence


def test_unknown_hardware_passes_with_a_word_unless_a_worse_transport_is_used() -> None:
    def verdict(used: str) -> bool:
        return judge(
            bytes_per_s=1e9,
            used=used,
            allowed=list(Transport),
            best=Transport.RDMA,
            expectation=None,
            min_ratio=0.5,
        ).ok

    assert verdict("rdma")
    assert verdict("")
    assert not verdict("tcp")


def test_what_the_hardware_should_give() -> None:
    def rate(transport: Transport, facts: LinkFacts) -> float | None:
        found = expected(transport, facts)
        return found and round(found.bytes_per_s / 1e9, 1)

    h100 = LinkFacts(True, 10e9, gpu="NVIDIA H100 80GB HBM3", nvlink=True)
    assert rate(Transport.NVLINK, h100) == 360.0
    assert rate(Transport.NVLINK, LinkFacts(True, 0, gpu="x", nvlink=False, pcie_generation=5, pcie_lanes=16)) == 49.1
    assert rate(Transport.NVLINK, LinkFacts(True, 0, gpu="Unheard Of")) is None
    assert rate(Transport.RDMA, LinkFacts(False, 0, rdma_bits_per_s=400e9)) == 49.5
    assert rate(Transport.RDMA, LinkFacts(False, 0)) is None
    assert rate(Transport.SHARED_MEMORY, LinkFacts(True, 10e9)) == 6.0
    assert rate(Transport.TCP, LinkFacts(True, 10e9, nic_bits_per_s=1e9)) == 0.6
    assert rate(Transport.TCP, LinkFacts(False, 10e9, nic_bits_per_s=1e9)) == 0.1
    assert rate(Transport.TCP, LinkFacts(False, 0)) is None


@given(
    transports,
    st.builds(LinkFacts, same_host=st.booleans(), copy_bytes_per_s=st.one_of(st.just(0.0), st.floats(1, 1e12))),
)
def test_an_expectation_is_above_zero(transport: Transport, facts: LinkFacts) -> None:
    found = expected(transport, facts)
    assert found is None or found.bytes_per_s > 0
