"""Training of 1-Lipschitz convolutional networks with torch."""

if __name__ != "lipdeploy.training":
    raise ImportError(
        "this folder is the package lipdeploy.training; install the project with "
        "'pip install -e .' and import lipdeploy.training instead of training"
    )
