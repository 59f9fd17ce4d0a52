"""/openapi.json against the server that serves it: schemathesis in positive and negative mode, NUL bytes included. The engine is
the echoing one: what is tested is what the gateway takes and answers."""
import http.client
import json
import pathlib
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))

from bad_input import gateway  # noqa: E402

CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
          "response_schema_conformance,negative_data_rejection")


@pytest.fixture(scope="module")
def url():
    with gateway() as address:
        yield address


def document(url):
    return json.loads(urllib.request.urlopen(url + "/openapi.json", timeout=20).read())


def test_every_operation_is_served(url):
    described = document(url)
    assert described["openapi"] == "3.1.0"
    parts = urllib.parse.urlparse(url)
    for path, operations in described["paths"].items():
        for method in operations:
            client = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
            client.request(method.upper(), path.replace("{id}", "org%2Ftiny"), b"{}" if method == "post" else None)
            answer = client.getresponse()
            assert answer.status not in (404, 405), (method, path)
            assert str(answer.status) in operations[method]["responses"]
            client.close()


def test_parameters_are_those_of_the_validator(url):
    schemas = document(url)["components"]["schemas"]
    parts = urllib.parse.urlparse(url)
    for schema, path, base in (("CompletionRequest", "/v1/completions", {"model": "tiny", "prompt": "a"}),
                               ("ChatRequest", "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]})):
        fields = schemas[schema]["properties"]
        assert len(fields) > 35 and fields["model"]["enum"] == ["tiny", "org/tiny"]
        for name in fields:
            client = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
            client.request("POST", path, json.dumps({**base, name: [{}] if fields[name].get("type") == ["object", "null"] else {"a": {}}}))
            answer = client.getresponse()
            body = json.loads(answer.read())
            client.close()
            if name in ("logit_bias", "stream_options", "chat_template_kwargs", "response_format"):
                assert (answer.status, body["error"]["code"]) == (400, "invalid_type")
            else:
                assert answer.status == 400 and body["error"]["param"] == name, (name, body)


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis(url, mode, tmp_path):
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    done = subprocess.run([program, "run", url + "/openapi.json", "--mode", mode, "-n", "15", "--phases", "examples,coverage,fuzzing", "--checks", CHECKS,
                           "--suppress-health-check", "all", "--workers", "1", "--seed", "1", "--generation-allow-x00", "true", "--no-color"],
                          capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
