"""Who makes way for whom, where contexts are protected."""

from amf.core.events import PrefixesCleared
from kit import Room, dispatch_in, kinds, prefix


def idle_contexts(workers: tuple[str, ...] = ("w1",), deadline_s: float | None = None, **config: object) -> Room:
    """A worker of 500 K tokens that runs nothing and holds 4 x 110 K of context, all protected for good."""
    room = Room(workers=workers, **{"hold_fraction": 1e6, **config})
    for number in range(4):
        room.serve(f"s{number}", f"s{number}", prefix((f"s{number}", 110_000)), deadline_s=deadline_s)
    return room


def test_contexts_without_a_deadline_make_way_for_a_call_that_has_one():
    room = idle_contexts()
    assert kinds(room.arrive("patient", prompt=prefix(("new", 100_000)))) == ["Admit", "Hold"]
    assert dispatch_in(room.arrive("urgent", prompt=prefix(("other", 100_000)), deadline_s=1e4)).call_id == "urgent"


def test_contexts_with_a_deadline_make_way_for_nobody():
    room = idle_contexts(deadline_s=1e4)
    assert kinds(room.arrive("urgent", prompt=prefix(("other", 100_000)), deadline_s=1e4)) == ["Admit", "Hold"]


def test_at_a_yield_share_of_zero_contexts_never_make_way():
    room = idle_contexts(lapse_s=60.0, yield_share=0.0)
    room.arrive("cold", prompt=prefix(("new", 100_000)))
    assert all("Dispatch" not in kinds(room.wake(room.now_s + 100.0)) for _ in range(20))


def test_a_context_that_is_lost_while_its_call_waits_is_protected_no_longer():
    """Calls that wait for each other's lost contexts would wait until they lapse, on workers that run nothing."""
    room = Room(workers=())
    room.join("w1", max_running=1)
    for number in range(4):
        room.serve(f"{number}a", f"s{number}", prefix((f"s{number}", 110_000)))
    room.arrive("busy")
    for number in range(4):
        back = room.arrive(f"{number}b", f"s{number}", prefix((f"s{number}", 110_000), ("more", 600)))
        assert kinds(back) == ["Hold"]
    home = room.fabric.book.lanes.home("w1")
    assert home.waiting_tokens > 440_000
    room.send(PrefixesCleared(at_s=room.now_s, name="w1", reason="reset"))
    room.wake(room.now_s + 1.0)
    assert home.waiting_tokens == 0


def test_a_crowd_that_waits_for_room_does_not_hide_a_call_that_has_it():
    """Only so many calls are priced at one look, and those without room are not among them."""
    room = idle_contexts(max_scan_calls=4)
    for number in range(10):
        room.arrive(f"large{number}", prompt=prefix((f"large{number}", 200_000)))
    room.now_s += 1.0
    room.arrive("busy", "s0", prefix(("s0", 110_000), ("more", 600)))
    small = prefix(("small", 70_000))
    assert kinds(room.arrive("small", prompt=small)) == ["Admit", "Hold"]
    room.first_token("busy")
    room.finish("busy", prompt=110_600, cached=110_000)
    assert dispatch_in(room.close("s0")).call_id == "small"
