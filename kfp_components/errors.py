"""The error tree, sorted by what the caller does next.

::

    KfpServingError                      exit code
    ├── InputError                       2   fix the input or the cluster's set-up; nothing was touched
    │   ├── RequestInvalid                   a field of the request is wrong
    │   ├── NotFound                         an object that the request names does not exist
    │   ├── ArtifactRejected                 the artifact is not what its digest or signature says
    │   ├── NameTaken                        an object of that name, or a field of it, belongs to somebody else
    │   │   └── NotAdopted                   an application serves the model that no release knows: adopt it first
    │   ├── PermissionDenied                 the identity used may not do it
    │   ├── StepOutOfOrder                   an earlier step has to pass first; the release goes on
    │   ├── RecordTooNew                     a newer version of the library wrote the release record; use that
    │   └── ManagedElsewhere                 another tool applies the field; commit the patch there, or have it yielded
    ├── TemporaryError                   3   try again; the state in the cluster says where to go on
    │   ├── Unreachable                      no answer from the API, the registry or the endpoint
    │   │   └── ProtocolDiffers              the router that answers is of another version, which understands something else
    │   ├── RouterFailed                     the release's router did not start; it is out again, and where it comes from is found out anew
    │   ├── Conflict                         somebody else wrote first, more often than we retried
    │   ├── ReleaseHeld                      another run is promoting this model
    │   ├── ReleaseLeft                      the surroundings stopped it; the same command goes on where it stood
    │   └── WaitTimeout                      not ready in time
    ├── Decayed                          7   a version that users have is worse than it was when it was promoted
    ├── RunFailed                        8   a run in Kubeflow Pipelines failed, and nothing that can be read from here says why
    └── RolloutStopped                       users are on the stable version
        ├── RolledBack                   4   the candidate is bad
        │   ├── DeployFailed                 it did not start
        │   ├── ApplicationRemoved           somebody else took its application, or the router's, out of the RayService
        │   ├── SmokeFailed                  it started and answered wrongly
        │   ├── CanaryFailed                 it did worse than stable under real traffic
        │   └── Aborted                      somebody asked for it
        ├── Inconclusive                 5   the budget was spent before the evidence sufficed: held at 0 %, evidence kept
        │   └── NotApproved                  nobody approved in time: held at 0 %
        └── MeterBroken                  6   the counts cannot be trusted: held at 0 %; says nothing about the candidate

A message names the object, what was found and what to do.
"""


class KfpServingError(Exception):
    """Base of everything this library raises on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class InputError(KfpServingError):
    """Fix the input; nothing was touched."""

    exit_code = 2


class RequestInvalid(InputError):
    """A field of the request is wrong."""


class NotFound(InputError):
    """An object that the request names does not exist."""


class ArtifactRejected(InputError):
    """The artifact is not what its digest or signature says, or cannot be verified although the request demands it."""


class NameTaken(InputError):
    """An object of that name, or a field of it that has to be written, belongs to somebody else."""


class NotAdopted(NameTaken):
    """An application serves the model that no release knows; `adopt` records it as the stable version."""


class PermissionDenied(InputError):
    """The identity used may not do what the step needs."""


class StepOutOfOrder(InputError):
    """An earlier step has to pass first; nothing was touched and the release goes on."""


class RecordTooNew(InputError):
    """A newer version of this library wrote the release record; this one may read it and does not write it."""


class ManagedElsewhere(InputError):
    """The field is applied by another tool (Flux, Argo CD, Helm ...), which would write it back; see `kfp_components.serving.ownership`."""


class TemporaryError(KfpServingError):
    """Try again; the release record says where to go on."""

    exit_code = 3


class Unreachable(TemporaryError):
    """No answer from the Kubernetes API, the registry or the endpoint."""


class ProtocolDiffers(Unreachable):
    """The router that answers is of another version of the library and does not understand this one."""


class RouterFailed(TemporaryError):
    """The release's router did not start: it is taken out again, the version stays, and the same command looks anew where a router can be had."""


class Conflict(TemporaryError):
    """The object changed between our read and our write."""


class ReleaseHeld(TemporaryError):
    """Another run is promoting this model."""


class ReleaseLeft(TemporaryError):
    """The surroundings (API, registry, endpoint, rights) stopped the release; nothing is undone and the same command goes on where it stood."""


class WaitTimeout(TemporaryError):
    """Something did not become ready in time."""


class Decayed(KfpServingError):
    """A version that users have answers worse than it did when it was promoted; it still serves."""

    exit_code = 7


class RunFailed(KfpServingError):
    """A run in Kubeflow Pipelines failed or was ended, and neither a release record nor a step's error that can be read says why."""

    exit_code = 8


class RolloutStopped(KfpServingError):
    """The rollout ended without a promotion; users are on the stable version."""


class RolledBack(RolloutStopped):
    """The candidate is bad and was taken back."""

    exit_code = 4


class DeployFailed(RolledBack):
    """The candidate did not start."""


class ApplicationRemoved(RolledBack):
    """Somebody else took its application, or the router's, out of the RayService while the release ran."""


class SmokeFailed(RolledBack):
    """The candidate started and answered wrongly."""


class CanaryFailed(RolledBack):
    """The candidate did worse than stable under real traffic."""


class Aborted(RolledBack):
    """Somebody asked for the release to be given up (`kfp-serving abort`); says nothing about the candidate."""


class Inconclusive(RolloutStopped):
    """The budget of requests or time was spent before the evidence sufficed; the candidate is held at 0 % and the same command goes on."""

    exit_code = 5


class NotApproved(Inconclusive):
    """Nobody approved in time; the candidate is held at 0 % and the same command goes on, or `approve` promotes it."""


class MeterBroken(RolloutStopped):
    """The counts cannot be trusted; this says nothing about the candidate, which is held at 0 % until the same command goes on."""

    exit_code = 6
