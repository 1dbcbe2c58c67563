"""`python -m lipdeploy` is the command line."""

from lipdeploy.cli import main

if __name__ == "__main__":
    main()
