"""The private names of Ray that trials use, in one place. Read against Ray 2.60.0.

``tests/trainables/distributed/test_ray_compat.py`` fails when a Ray release moves one of them. Importing this module
changes nothing in Ray.
"""

from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.exceptions import RayTrainError

__all__ = ["RayTrainError", "propagate_ray_address"]

# RayTrainError: the base of the errors by which Train reports a lost worker; only its subclasses are public.


def propagate_ray_address() -> None:
    """Make Train pass ``RAY_ADDRESS`` on to a run's controller. Call it when a trial starts, before its first run.

    Train's placement-group cleaner asks the State API whether its controller is alive. If several Ray instances run on
    one host and no address is set, the request fails. Ray 2.60 then takes the controller for dead and removes the
    workers of a healthy run. The cleaner inherits the controller's environment, and only the private set
    ``ENV_VARS_TO_PROPAGATE`` decides what is in it. Related: ray#54305, ray#58515, ray#65447.
    """
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
