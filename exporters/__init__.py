"""From a trained network to an engine: freezing, planning and writing."""

if __name__ != "lipdeploy.exporters":
    raise ImportError(
        "this folder is the package lipdeploy.exporters; install the project with "
        "'pip install -e .' and import lipdeploy.exporters instead of exporters"
    )
