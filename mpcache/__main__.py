"""`python -m mpcache` is the command `mpcache`."""

from mpcache.cli import main

if __name__ == "__main__":
    main()
