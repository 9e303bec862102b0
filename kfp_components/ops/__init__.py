"""The steps of a release as thin KFP components: one file, one function, one name from file to UI.

Only a component function's own source travels to the pod, so each body imports the installed library and calls one function. No caching:
every one of them touches a cluster. ``image.py`` names the component image once, its tag is the version of this library.
"""
