"""Write compiled/ of this checkout: ``python -m pipelines.compile [--check]``; see `kfp_components.workflows.compile`."""

from kfp_components.workflows.compile import compile_all, differences, main

__all__ = ["compile_all", "differences", "main"]

if __name__ == "__main__":
    main()
