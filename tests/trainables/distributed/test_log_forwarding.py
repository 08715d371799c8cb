"""What a worker logs goes with its next report."""

import logging

from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.log_forwarding import forwarded_messages, joined_notices

logger = logging.getLogger("tailsweep.trainables.a_module")


def test_a_report_takes_the_messages_since_the_one_before() -> None:
    with forwarded_messages() as messages:
        assert messages.take() == {}
        logger.debug("detail")
        logger.info("reads features")
        logger.warning("damaged")
        logger.warning("damaged")
        assert messages.take() == {report_keys.NOTICE: "reads features; damaged"}
        assert messages.take() == {}
    logger.warning("after the end")
    assert messages.take() == {}


def test_every_worker_of_a_trial_is_quoted_once() -> None:
    reports = [
        {"loss": 1.0, report_keys.NOTICE: "damaged"},
        {report_keys.NOTICE: "damaged"},
        {},
        {report_keys.NOTICE: "slow"},
    ]
    assert joined_notices(reports) == {report_keys.NOTICE: "damaged; slow"}
    assert joined_notices([{"loss": 1.0}, {}]) == {}
