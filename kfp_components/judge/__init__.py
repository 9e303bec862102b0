"""Compare a candidate with the stable version while requests arrive; every look is valid, also one after each request.

``counts`` turns the router's ledger into ticks, ``batch`` gathers them, ``error_rate`` and ``latency`` hold an e-process each for FAIL and for PASS,
``split`` tests the meter, ``stuck`` sees a candidate that hangs, ``verdict`` combines them, ``weight`` says how much
traffic the evidence allows. ``decay`` compares a version in use with its own record, run after run. Pure numpy; the state is a small JSON that
survives a restart exactly.
"""
