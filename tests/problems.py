"""What every refusal over HTTP looks like."""

import httpx


def check_problem(answer: httpx.Response, status: int, sentence: str = "") -> str:
    """Check that an answer is a problem document that says the sentence; return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail"} <= set(body)
    assert body["status"] == status
    detail: str = body["detail"]
    assert sentence in detail
    return detail
