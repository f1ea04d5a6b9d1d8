from peftkit.data.replay import add_replay


def test_replayed_rows_are_the_share_that_was_asked_for():
    mixed = add_replay(
        [{"new": i} for i in range(80)], [{"old": i} for i in range(50)], 0.2, seed=0
    )
    assert sum("old" in row for row in mixed) == 20
    assert sum("old" in row for row in add_replay([{}] * 80, [{"old": 1}] * 5, 0.5, seed=0)) == 5
