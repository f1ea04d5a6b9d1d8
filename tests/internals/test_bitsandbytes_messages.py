import logging

from peftkit.internals.bitsandbytes_messages import _LOGGERS, quiet_bitsandbytes


def test_warnings_are_hidden_inside_and_errors_are_not_and_nothing_is_left_behind(caplog):
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(list(logger.filters), logger.level) for logger in loggers]
    with quiet_bitsandbytes():
        for logger in loggers:
            logger.warning("hidden")
            logger.error("shown")
    for logger in loggers:
        logger.warning("shown too")
    assert [record.message for record in caplog.records] == ["shown"] * 2 + ["shown too"] * 2
    assert [(list(logger.filters), logger.level) for logger in loggers] == before


def test_leaving_one_of_two_leaves_the_other(caplog):
    with quiet_bitsandbytes():
        with quiet_bitsandbytes():
            pass
        logging.getLogger(_LOGGERS[0]).warning("hidden")
    assert not caplog.records
