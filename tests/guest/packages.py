"""Debian packages for the guest, resolved by apt against an empty machine, kept in a cache.
Nothing is installed on this machine, nothing outside the cache is written, and no root is needed.
They are of the release that this machine's apt knows, unless the cache was made for another one.
"""

import subprocess
from pathlib import Path

FETCH_S = 240
UNPACK_S = 60
MACHINES_LISTS = Path("/var/lib/apt/lists")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def choose_release(cache, name):
    """From now on the packages in this cache are of that release of Debian, from the mirror that
    this machine uses.
    """
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]
    found = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=True)
    assert found.stdout, "apt on this machine knows no mirror of Debian"
    line = f"deb [signed-by={KEYS}] {found.stdout.split()[0]} {name} main\n"
    sources = _own_sources(cache)
    sources.parent.mkdir(parents=True, exist_ok=True)
    sources.write_text(line)


def _own_sources(cache):
    return cache / "apt" / "sources.list"


def apt(cache, *words, cwd=None):
    """Run apt-get on a package state of the cache's own, in the folder `cwd`; what it printed."""
    state = cache / "apt"
    for folder in (state, state / "lists" / "partial", state / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",  # which means: none
        "Debug::NoLocking": "1",
    }
    if _own_sources(cache).is_file():
        options["Dir::Etc::sourcelist"] = _own_sources(cache)
        options["Dir::Etc::sourceparts"] = "/dev/null"
    elif "update" not in words and _has_lists(MACHINES_LISTS):
        options["Dir::State::lists"] = MACHINES_LISTS
    flags = [f"--option={name}={value}" for name, value in options.items()]
    done = subprocess.run(
        ["apt-get", "--yes", "--quiet", "--no-install-recommends", *flags, *words],
        capture_output=True,
        text=True,
        timeout=FETCH_S,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, f"apt-get {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def _has_lists(folder):
    return any(folder.glob("*_Packages*"))


def resolve(cache, names):
    """The file names, versions included, of these packages and of all that they depend on."""
    machines = _has_lists(MACHINES_LISTS) and not _own_sources(cache).is_file()
    if not machines and not _has_lists(cache / "apt" / "lists"):
        apt(cache, "update")
    # apt leaves out what it has in its archives, so here it looks into a folder that stays empty.
    empty = cache / "apt" / "none"
    (empty / "partial").mkdir(parents=True, exist_ok=True)
    printed = apt(
        cache, "install", "--print-uris", f"--option=Dir::Cache::archives={empty}", *names
    )
    files = [line.split()[1] for line in printed.splitlines() if line.startswith("'")]
    assert files, f"apt-get found nothing to fetch: {printed}"
    return sorted(files)


def fetch(cache, names, files):
    """Download the packages that `resolve` named, forget others, and return their paths."""
    try:
        apt(cache, "install", "--download-only", *names)
    except AssertionError:  # the lists are older than what the archive now holds
        apt(cache, "update")
        apt(cache, "install", "--download-only", *names)
    folder = cache / "apt" / "archives"
    for path in folder.glob("*.deb"):
        if path.name not in files:
            path.unlink()
    found = sorted(folder.glob("*.deb"))
    assert [path.name for path in found] == files, "apt-get fetched other versions than it named"
    return found


def fetch_alone(cache, folder, names):
    """Download these packages and nothing that they depend on into a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    apt(cache, "download", *names, cwd=folder)
    found = sorted(folder.glob("*.deb"))
    assert len(found) == len(names), f"asked for {names}, got {found}"
    return found


def unpack(package, folder):
    """Unpack one package's files into a folder; its scripts are not run."""
    command = ["dpkg-deb", "--extract", package, folder]
    subprocess.run(command, check=True, capture_output=True, timeout=UNPACK_S)
