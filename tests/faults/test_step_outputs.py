"""What a step leaves for a person in Kubeflow's UI: the Model artifact, the summary and the numbers, as KFP's own artifact classes hold them."""

import json
from pathlib import Path

import pytest
from kfp import dsl
from memory_world import MODEL, REGISTERED, Chosen, World, asked, live

from kfp_components import errors, report, rollout
from kfp_components.cluster.faults import Record
from kfp_components.ops import runtime
from kfp_components.registry import ENVIRONMENT
from kfp_components.request import PromoteRequest

DIGEST = "sha256:" + 64 * "a"
OWN = "minio://mlpipeline/v2/artifacts/run/registered_model"


@pytest.fixture
def served(world: World) -> World:
    world.rayservice(live())
    world.front()
    return world


def model(run: rollout.Run, at: Path) -> dsl.Model:
    found = dsl.Model(uri=OWN)
    found.custom_path = str(at)
    runtime.describe_model(run, rollout.register_model(run), found)
    return found


def test_the_model_artifact_says_what_the_registry_knows(served: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT[0], "https://me:SECRET@registry.example/mlflow")
    run = served.process().open(asked(digest=DIGEST, provenance={"framework": "pytorch"}))
    run.source.update({"kfp_run_id": "7"})
    found = model(run, tmp_path / "model")
    assert found.framework == "pytorch"
    known = dict(found.metadata)
    assert known.pop("artifact_check").startswith("not verified")
    assert known == {
        "name": REGISTERED,
        "version": "v2",
        "uri": f"s3://models/{MODEL}/v2",
        "digest": DIGEST,
        "model_format": "custom",
        "framework": "pytorch",
        "import_path": "acme.bge:build",
        "registry": "https://registry.example/...",
        "aliases": "candidate",
        "kfp_run_id": "7",
    }
    assert found.uri == OWN, "KFP fails a step whose output is in another bucket than the run's"
    assert json.loads((tmp_path / "model").read_text()) == found.metadata


@pytest.mark.parametrize("uri", ["https://models.example/bge/v2", "pvc://models/bge/v2", "oci://registry.example/bge@sha256:" + 64 * "b"])
def test_where_kfp_lets_it_the_artifact_is_where_the_model_is(served: World, tmp_path: Path, uri: str) -> None:
    plain = asked().model_dump()
    plain["options"]["artifact"]["verify"] = "off"
    found = model(served.process().open(PromoteRequest.model_validate({**plain, "uri": uri})), tmp_path / "model")
    assert found.uri == uri == found.metadata["uri"] and not (tmp_path / "model").exists()


def test_a_registry_that_is_away_once_it_is_registered_stops_nobody(served: World, tmp_path: Path) -> None:
    gone = Chosen(served.clock, lambda call: away(call) if (record := served.stored()) is not None and record.phase == "registered" else None)
    found = model(served.process(gone).open(asked()), tmp_path / "model")
    assert found.metadata["version"] == "v2" and found.metadata["import_path"] == "acme.bge:build" and "aliases" not in found.metadata


def away(call: Record) -> BaseException | None:
    return errors.Unreachable("registry away") if call.owner == "registry" else None


def test_the_summary_says_who_gets_what_on_which_evidence_and_what_comes_next(served: World) -> None:
    run = served.process().open(asked())
    told = {}
    for name, step in [
        ("register", rollout.register_model),
        ("deploy", rollout.deploy_rayservice),
        ("alias", rollout.create_alias),
        ("stub", rollout.create_inference_service),
        ("smoke", rollout.smoke_inference),
        ("canary", lambda run: rollout.canary_step(run, 0)),
        ("last", lambda run: rollout.canary_step(run, 1)),
        ("promote", rollout.promote_model),
    ]:
        run.clock.sleep(1)
        began = run.clock.now_unix_s()
        told[name] = report.markdown(step(run).model_dump(mode="json"), began)
    for name in ("register", "deploy", "smoke"):
        assert "- **Users get**: v1, with every request\n" in told[name] and "Evidence" not in told[name], told[name]
        assert "- **Next**: the next step goes on; " in told[name] and f"\\`kfp-serving abort {MODEL} -n ai-ml\\`" in told[name]
    assert "- **This step**: " in told["register"] and "bge v2 registered from s3://models/bge/v2" in told["register"]
    assert "registered from" not in told["deploy"], "only what this step did"
    assert "- **Users get**: v1 80 %, v2 20 % for as long as a step renews that\n" in told["canary"], told["canary"]
    assert " : 1 that the candidate is worse (taken back at 100 : 1), " in told["canary"]
    assert "- **Users get**: v2, with every request\n" in told["promote"] and "- **Next**: nothing, it is done" in told["promote"], told["promote"]


def test_of_one_that_was_taken_back_it_says_why(served: World, tmp_path: Path) -> None:
    served.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    process = served.process()
    with pytest.raises(errors.CanaryFailed):
        process.promote(asked())
    page, summary, metrics = dsl.HTML(uri=str(tmp_path / "page")), dsl.Markdown(uri=str(tmp_path / "summary")), dsl.Metrics()
    runtime.show(process.open_rollback(asked()), served.record(), page, summary, metrics)
    told = (tmp_path / "summary").read_text()
    assert told.startswith("## bge v1 to v2: rolled back\n") and "worse in errors" in told
    assert "- **Users get**: v1, with every request\n" in told and "- **Next**: read above" in told
    assert metrics.metadata["e_fail"] >= 100 and metrics.metadata["candidate_failures"] > 0


def test_a_number_that_json_cannot_hold_fails_no_step(served: World) -> None:
    record = served.promote(asked())
    record.timeline[-1] = record.timeline[-1].model_copy(update={"e_pass": float("inf"), "e_fail": float("nan")})
    assert {"e_pass", "e_fail"} & set(runtime.numbers(record)) == set() and runtime.numbers(record)["candidate_requests"] > 0


def test_where_there_is_no_release_the_outputs_say_so(tmp_path: Path) -> None:
    page, summary = dsl.HTML(uri=str(tmp_path / "page")), dsl.Markdown(uri=str(tmp_path / "summary"))
    runtime.show_nothing("model <b>x|y</b>: there is no release", page, summary)
    assert "&lt;b&gt;x|y" in (tmp_path / "page").read_text()
    assert "\nmodel &lt;b&gt;x\\|y&lt;/b&gt;: there is no release\n" in (tmp_path / "summary").read_text()


@pytest.mark.parametrize("hostile", ["a|b", "`code`", "<script>x</script>", "[link](javascript:x)", "# title", "line\n\n- item", "~~struck~~"])
def test_nothing_from_outside_is_markup_in_a_summary(served: World, hostile: str) -> None:
    record = served.promote(asked()).model_dump(mode="json")
    record["events"].append({"unix_s": 2e9, "step": hostile, "message": hostile, "ok": False})
    record["verdict"]["sentence"] = hostile
    told = report.markdown(record, 1.9e9)
    clean = report.markdown({**record, "events": [], "verdict": {**record["verdict"], "sentence": "x"}}, 1.9e9)
    assert len(told.splitlines()) == len(clean.splitlines())
    assert report.plain(hostile) in told and "<" not in told and hostile.split("\n")[0] not in told.replace(report.plain(hostile), "")
    for mark in "`|[~":
        assert hostile.count(mark) == report.plain(hostile).count(f"\\{mark}")
