"""Fixtures for the tests that drive one server with the OpenAI SDK: it is started once per session (server.py says how).

SLUICE_URL       test a server that runs already instead
"""
import json
import os
import urllib.error
import urllib.request

import openai
import pytest

from server import PATIENCE, Server


class SdkServer(Server):
    """A server of our own, or with url one that somebody else started."""

    def __init__(self, *flags, url=None):
        self.process = None
        if url:
            self.url = url
        else:
            super().__init__(*flags)

    def get(self, path, timeout=30):
        """(status, text); statuses of errors are returned, not raised."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout * PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def load(self):
        return json.loads(self.get("/load")[1])


@pytest.fixture(scope="session")
def server():
    if os.environ.get("SLUICE_URL"):
        yield SdkServer(url=os.environ["SLUICE_URL"])
        return
    started = SdkServer()
    try:
        yield started
    finally:
        code = started.stop()
    assert code == 0


@pytest.fixture
def new_server():
    """Starts further servers with flags of their own; stops them at the end."""
    servers = []

    def start(*flags):
        servers.append(SdkServer(*flags))
        return servers[-1]

    yield start
    for one in servers:
        if one.process.poll() is None:
            one.stop()


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120 * PATIENCE)


@pytest.fixture
def async_client(server):
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120 * PATIENCE)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
