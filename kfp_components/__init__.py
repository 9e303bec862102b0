"""Put a new model version in front of users: canary, judge, promote, roll back, on one shared KubeRay RayService.

Reading order is the order in which data flows:

1.  ``errors``    the error tree, sorted by what the caller does
2.  ``names``     every derived name, label, annotation and field manager; ``phases`` of a release, the only list of them
3.  ``request``   ``PromoteRequest``: what is asked for, checked at birth
4.  ``release``   ``Release``: the state of one promotion, kept in the cluster; a Lease per model
5.  ``serving``   pure manifests and readers: RayService, InferenceService stub, alias
6.  ``cluster``   the Kubernetes API, real or in memory (``kube_api``); its ``changes`` are the only writer
7.  ``registry``  models and aliases; ``artifact`` whether it is what its digest and signature say; ``probes`` smoke inference
8.  ``traffic``   weights and the router's counts; ``router`` and ``models`` run inside Ray; ``judge`` verdicts; ``report`` a page to read
9.  ``rollout``   one function per step, which notebooks and the CLI call
10. ``ops``       the same steps as thin KFP components; ``workflows`` pipelines of them; ``local`` the embedded cluster; ``cli`` the command

This module holds no code: the import name is also claimed by the distribution `kfp-components` (see setup.py).
"""
