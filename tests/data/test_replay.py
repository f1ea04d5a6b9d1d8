from peftkit.data.replay import add_replay
from peftkit.data.rows import Rows


def test_replayed_rows_are_the_share_that_was_asked_for():
    new, old = Rows.of([{"new": i} for i in range(80)]), Rows.of([{"old": i} for i in range(50)])
    assert sum("old" in row for row in add_replay(new, old, 0.2, seed=0)) == 20
    assert sum("old" in row for row in add_replay(new, old[:5], 0.5, seed=0)) == 5
