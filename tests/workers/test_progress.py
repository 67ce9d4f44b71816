from __future__ import annotations

from workers.progress import ProgressWatch


def test_work_without_a_step_is_a_hang_and_idleness_is_not() -> None:
    watch = ProgressWatch(20)
    assert not any(watch.hung(5, False, now_s) for now_s in range(0, 200, 10))
    assert not watch.hung(5, True, 200)
    assert not watch.hung(5, True, 219)
    assert watch.hung(5, True, 220)


def test_the_time_begins_with_the_work_and_anew_with_each_step() -> None:
    watch = ProgressWatch(20)
    assert not watch.hung(1, True, 0)
    assert not watch.hung(2, True, 19)
    assert not watch.hung(2, True, 38)
    assert not watch.hung(2, False, 39)  # its work was done or aborted
    assert not watch.hung(2, True, 40)
    assert not watch.hung(2, True, 59)
    assert watch.hung(2, True, 60)


def test_a_hang_lasts_until_the_next_step() -> None:
    watch = ProgressWatch(20)
    watch.hung(1, True, 0)
    assert watch.hung(1, True, 20)
    assert watch.hung(1, False, 30)
    assert not watch.hung(2, True, 31)
