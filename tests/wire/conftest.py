import pytest

import daemon as d


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    return d.synth(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def nibbled(tmp_path_factory, image):
    """One daemon for a whole file."""
    yield from d.lived(d.Daemon(tmp_path_factory.mktemp("nibbled"), image))


@pytest.fixture
def start(tmp_path, image):
    """Starts daemons of one test's own; none outlives it."""
    started = []

    def go(**more):
        started.append(d.Daemon(tmp_path / str(len(started)), more.pop("image", image), **more))
        return started[-1]

    yield go
    for daemon in started:
        daemon.kill()


@pytest.fixture(scope="session")
def special_ids(tmp_path_factory, image):
    daemon = d.Daemon(tmp_path_factory.mktemp("specials"), image)
    try:
        return d.specials(daemon)
    finally:
        daemon.kill()


@pytest.fixture(scope="session")
def endless(special_ids):
    """A logit_bias that keeps the model from ending its turn."""
    return {str(i): -100 for i in special_ids.values()}
