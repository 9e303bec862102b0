"""The way back, shorter than the way forward: first the weight, in one write, with nothing before it that can fail; then the rest.

`take_back` ends a release, `hold` and `leave` stop it where the same command goes on. Each may be run again after a kill at any point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Unpack

from kfp_components import errors, names, phases, probes
from kfp_components.cluster import Ref
from kfp_components.cluster.changes import Apply, Delete, write
from kfp_components.judge import counts
from kfp_components.phases import Phase
from kfp_components.release import Failure, Held, Release, Rollback
from kfp_components.request import SmokeCase
from kfp_components.rollout import journal, manifests, registered, routes
from kfp_components.rollout.run import Run
from kfp_components.serving import alias, rayservice

PROBES = 10
VERIFY_S = 30.0
"""How long a router that routes right may take until probes find it so."""


def take_back(run: Run, error: BaseException) -> Release:
    """All traffic to stable, verified; then the candidate's traces go. The record ends ``rolled_back``.

    Raises `ReleaseHeld` when another run has taken over, another error of ours when the cluster does not let it finish: the record says
    ``rolling_back`` then, once the weight is written. What cannot be tidied up for want of rights, or because the registry is away, is
    noted and left behind.
    """
    began = run.clock.monotonic()
    record = journal.current(run)
    stable = record.stable_version
    back = give_back(run, record)
    failure = record.failure or Failure(error=type(error).__name__, message=str(error))
    told = f"all traffic back to {stable}: " if back else "somebody else wrote serveConfigV2, users get what is in it now: " if stable else ""
    verdict = record.verdict
    record = journal.write(
        run,
        "roll back",
        told + failure.message,
        ok=False,
        phase="rolling_back",
        failure=failure,
        weight_percent=0.0,
        held=None,
        previous=None,
        verdict=verdict,
    )
    if back is not None and record.rollback is None:  # else it was verified before, and the alias may be gone by now
        routes.wait_back(run, back)
        if back.split is not None:  # else Serve itself was asked
            verify(run, back.stable, strict=False)
        seconds = round(run.clock.monotonic() - began, 2)
        rollback = Rollback(seconds=seconds, leaked_requests=_leaked_requests(run, record), reason=failure.message)
        record = journal.write(run, "roll back", f"{stable} answers everything after {seconds:.1f} s", rollback=rollback)
    left_behind = tidy_up(run, record, back)
    if left_behind:
        error.add_note(f"Left behind: {'; '.join(left_behind)}.")
    serves = f"{stable} serves" if back else "what is in serveConfigV2 serves" if stable else "nothing serves"
    finished = finish(run, "rolled_back", f"{record.candidate_version} is taken back; {serves}")
    error.add_note(f"{record.candidate_version} is taken back; {serves} all requests." if stable else f"{record.candidate_version} is taken back.")
    return finished


def hold(run: Run, error: BaseException) -> Release:
    """All traffic to stable; the candidate stays deployed and the evidence is kept. Raises as `take_back`; the record says ``held`` once it is so."""
    record = journal.current(run)
    back = give_back(run, record)
    held = Held(error=type(error).__name__, message=str(error), since_unix_s=run.clock.now_unix_s())
    message = f"{record.candidate_version} is held at 0 %: {error}"
    record = journal.write(run, "held", message, ok=False, phase="held", held=held, weight_percent=0.0, verdict=record.verdict)
    with contextlib.suppress(errors.TemporaryError):  # what came since stands in the router's counts
        run.store.save_canary(record)
    _say_stable_serves(run, record, back)
    go_on = phases.how_to_go_on(record.in_a_command, record.candidate_version, held=True)
    error.add_note(f"{go_on} {_who_serves(run, record)}.")
    _let_go(run)
    return record


def leave(run: Run, step: str, error: BaseException) -> BaseException:
    """Stop here: a canary's traffic goes to stable, nothing else changes. Returns what is to be raised: `ReleaseLeft` for an error of ours.

    Raises `ReleaseHeld` when another run has taken over.
    """
    record = journal.current(run)
    users = _who_serves(run, record)
    if record.phase == "canary":
        try:
            back = give_back(run, record)
            users = f"{record.stable_version} serves all requests" if back else "the route is another application's; users get that"
            record = journal.write(run, step, f"left: {type(error).__name__}: {error}", ok=False, weight_percent=0.0)
            _say_stable_serves(run, record, back)
        except errors.ReleaseHeld:
            raise
        except errors.KfpServingError:
            pass  # it was asked for as long as patience allows: the weight lapses
    else:
        journal.try_note(run, step, f"left: {type(error).__name__}: {error}")
    _let_go(run)
    if isinstance(error, errors.KfpServingError):
        return left(run, str(error), users)
    error.add_note(f"{users}. {phases.how_to_go_on(record.in_a_command, record.candidate_version)}")
    return error


def left(run: Run, why: str, users: str = "") -> errors.ReleaseLeft:
    """The error that says what users have and how to go on."""
    record = journal.current(run)
    return errors.ReleaseLeft(f"{why}. {users or _who_serves(run, record)}. {phases.how_to_go_on(record.in_a_command, record.candidate_version)}")


def give_back(run: Run, record: Release) -> routes.WayBack | None:
    """Write that users get stable, whatever was written before; None without a stable version, and when the route is none of this release's any more.

    Raises `ApplicationRemoved`, and writes nothing, when stable itself is not there any more; `ReleaseHeld` when another run has taken over.
    """
    stable = record.stable_version
    if stable is None:
        return None
    try:
        fence = partial(journal.assert_ours, run)
        found = write(run.cluster, routes.back_change(run, record, stable), fence=fence, clock=run.clock, way_back=True)
    except (errors.NotFound, errors.NameTaken, errors.ApplicationRemoved) as error:
        ours = (names.router_application(record.model), record.application(record.candidate_version))
        if routes.has_it(run, run.cluster.get(run.rayservice)) not in ours:
            return None
        raise errors.ApplicationRemoved(
            f"{error}. The candidate stays as it is: put {stable} back, then run `kfp-serving rollback {record.in_a_command}`"
        ) from error
    through_router = routes.has_it(run, found) == names.router_application(record.model)
    return routes.WayBack(stable, routes.stable_alone(run, record, stable) if through_router else None)


def tidy_up(run: Run, record: Release, back: routes.WayBack | None) -> list[str]:
    """Leave the cluster as it was before the release: only the record, Events and the registered version remain.

    Each item for itself: what is refused, and what the registry does not do, is noted, left behind and returned. Raises the first temporary error of
    the cluster after all items were tried.
    """
    request, stable = run.request, record.stable_version
    fence = partial(journal.assert_ours, run)
    service, stub = Ref("Service", run.address.alias, request.namespace), manifests.stub_ref(run)
    in_cluster: list[tuple[str, Callable[[], object]]] = []
    before = record.names_before
    if before is not None and before.stub is not None and "InferenceService" not in record.made:
        in_cluster.append((f"{stub} as it was", partial(write, run.cluster, Apply(before.stub, "as it was before the release"), fence=fence)))
    candidate = record.application(record.candidate_version)
    in_cluster.append((f"application {candidate}", partial(_remove, run, record, candidate, back)))
    made = "this release made it"
    if "Service" in record.made:
        in_cluster.append((str(service), partial(write, run.cluster, Delete(service, made), fence=fence)))
    if alias.LABEL in record.made:
        in_cluster.append((f"label of {service}", partial(_unlabel, run, service, fence)))
    if "InferenceService" in record.made:
        in_cluster.append((str(stub), partial(write, run.cluster, Delete(stub, made), fence=fence)))
    elif stable is not None:
        in_cluster.append((f"traffic of {stub}", partial(manifests.show, run, {stable: 100.0}, manifests.all_message(stable))))
    unfinished: list[errors.KfpServingError] = []
    left_behind: list[str] = []
    for what, do in in_cluster:
        try:
            run.keep()
            do()
        except (errors.ReleaseHeld, errors.TemporaryError) as error:
            if isinstance(error, errors.ReleaseHeld):
                raise
            unfinished.append(error)
        except errors.KfpServingError as error:
            left_behind.append(f"{what} ({error})")
            journal.try_note(run, "tidy up", f"{what} is left behind: {error}")
    for what, why in registered.settle(run, record):
        left_behind.append(f"registry {what} ({why})")
        journal.try_note(run, "tidy up", f"registry {what} is left behind: {why}")
    if unfinished:
        raise unfinished[0]
    return left_behind


def _remove(run: Run, record: Release, candidate: str, back: routes.WayBack | None) -> None:
    """The route goes to stable's application, as it stood there before; then the candidate and the router go, which nobody reaches any more."""
    if record.adopts:
        return  # it served before, and goes on
    router = names.router_application(record.model)
    found = run.persist(lambda: run.cluster.get(run.rayservice))
    gone = {candidate}
    if record.stable_version is not None and router in rayservice.applications(rayservice.serve_config(found)):  # else the route was given before
        if back is not None:
            routes.give(run, back.stable, way_back=True)
        if back is None or routes.drain(run):
            gone.add(router)
        else:
            journal.try_note(run, "tidy up", routes.still_busy(record))
    removal = manifests.removal_change(run, gone, created_by=record.identity)
    write(run.cluster, removal, fence=partial(journal.assert_ours, run), clock=run.clock, way_back=True)


def _unlabel(run: Run, service: Ref, fence: Callable[[], object]) -> None:
    found, request = run.cluster.get(service), run.request
    if found is not None:
        bare = alias.without_label(request.model, request.namespace, request.target_host, found)
        write(run.cluster, Apply(bare, "as it was before the release"), fence=fence)


def verify(run: Run, version: str, *, strict: bool) -> None:
    """Probes through the alias, where the router has the route, must be answered by ``version``. Where it has not, `weights.wait_owner` asks Serve.

    Raises `WaitTimeout` naming who answered instead. Probes without an answer raise it only when ``strict``; else they are noted.
    """
    case = SmokeCase(name="version", path="/v2/health/ready" if run.request.options.protocol == "v2" else "/", method="GET", timeout_s=10)
    deadline = run.clock.monotonic() + VERIFY_S
    while True:
        told = _probe(run, case)
        if all(found == version for found in told):
            return
        if run.clock.monotonic() >= deadline:
            break
        run.pause(0.5)
    wrong = next((found for found in told if found not in (None, version)), None)
    if wrong or strict:
        raise errors.WaitTimeout(
            f"model {run.request.model}: {wrong or 'nobody'} answered where {version} should; look at the router in the Ray dashboard"
        )
    journal.try_note(run, "roll back", f"{told.count(None)} of {PROBES} probes of {version} got no answer; the router sends it everything")


def finish(run: Run, phase: Phase, message: str, /, **fields: Unpack[journal.Fields]) -> Release:
    """The end of a release: nobody needs the Lease any more, then the record says so. Killed in between, the same command does the rest."""
    now = run.clock.now_unix_s()
    with contextlib.suppress(errors.KfpServingError):  # it lapses by itself
        run.persist(run.lease.release)
    fields["phase"], fields["finished_unix_s"] = phase, now
    record = journal.write(run, phase.replace("_", " "), message, ok=phase == "promoted", **fields)
    with contextlib.suppress(errors.KfpServingError):  # the history of the canary, for the report
        run.store.save_canary(record)
    return record


def as_error(record: Release) -> errors.KfpServingError:
    """What stopped a release, as it was raised then, and what users have since."""
    failure = record.failure or Failure(error="RolledBack", message=f"model {record.model}: rolled back")
    kind = getattr(errors, failure.error, errors.RolledBack)
    if not (isinstance(kind, type) and issubclass(kind, errors.KfpServingError)):
        kind = errors.RolledBack
    error: errors.KfpServingError = kind(failure.message)
    if record.done and record.stable_version:
        error.add_note(f"{record.candidate_version} is taken back; {record.stable_version} serves all requests.")
    return error


def _probe(run: Run, case: SmokeCase) -> list[str | None]:
    try:
        endpoint = run.cluster.endpoint(run.address.alias, run.request.namespace, names.SERVE_PORT)
    except errors.KfpServingError:
        return [None] * PROBES
    with probes.Prober(endpoint, run.request.model, run.address.prefix, run.transport) as prober:
        return [prober.version_that_answers(case) for _ in range(PROBES)]


def _say_stable_serves(run: Run, record: Release, back: routes.WayBack | None) -> None:
    """Wait until it is so, and show it; neither is worth more than a try."""
    if back is None or record.stable_version is None:
        return
    with contextlib.suppress(errors.TemporaryError, errors.InputError):
        routes.wait_back(run, back)
        manifests.show(run, {record.stable_version: 100.0}, manifests.all_message(record.stable_version))


def _let_go(run: Run) -> None:
    """Nobody works on the release now: the same command need not wait for the Lease to lapse."""
    with contextlib.suppress(errors.KfpServingError):
        run.lease.release() if run.in_one_process else run.lease.park()


def _who_serves(run: Run, record: Release) -> str:
    if record.phase == "promoted":
        return f"{record.candidate_version} serves all requests"
    if record.adopts:
        return f"application {record.application(record.candidate_version)} serves all requests, as before"
    if record.phase == "promoting":
        return f"all traffic is being moved from {record.stable_version or 'nothing'} to {record.candidate_version}; users get the one or the other"
    if record.phase == "canary":
        lease_s = run.request.options.lease_s
        return f"{record.stable_version} gets all requests again by itself within {lease_s:g} s, when the candidate's weight lapses"
    return f"{record.stable_version} serves all requests, as before" if record.stable_version else "no version serves yet"


def _leaked_requests(run: Run, record: Release) -> int | None:
    """Users' requests that the candidate answered after the last look; None when nobody can say. The way back does not depend on it."""
    if record.judge is None or record.finished_unix_s is not None:  # promoted: since then all were its own
        return None
    try:
        seen = counts.requests_at(record.judge.cursor, record.candidate_version)
        return max(0, counts.total_requests(run.router.ledger(), record.candidate_version) - seen)
    except (errors.KfpServingError, KeyError, TypeError, ValueError):
        return None
