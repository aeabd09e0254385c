"""Stands in for the daemon: an HTTP server on a UNIX socket that says, byte for byte, what a test wants."""

import json
import socket
import threading

MODELS = {"data": [{"id": "standin", "context_length": 4096, "slots": 2, "queue": 3}]}


def event(delta=None, finish=None, **more):
    chunk = {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def content(text):
    return event({"content": text})


def reasoning(text):
    return event({"reasoning_content": text})


END = (event(finish="stop") + b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}\n\n'
       + b"data: [DONE]\n\n")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def answer(*events):
    return [HEAD + b"".join(events) + END]


def refusal(status, body):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return [b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body]


class Standin:
    """Answers chat requests from a list; an answer is a list of bytes, or of callables called with the connection.
    Requests are kept in `asked`."""

    def __init__(self, path, answers):
        self.path, self.answers, self.asked = str(path), list(answers), []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(8)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            with conn:
                try:
                    self.one(conn)
                except OSError:  # the client went away
                    pass

    def one(self, conn):
        data = b""
        while b"\r\n\r\n" not in data:
            data += conn.recv(65536)
        head, body = data.split(b"\r\n\r\n", 1)
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                       if line.startswith(b"content-length:")), 0)
        while len(body) < length:
            body += conn.recv(65536)
        if head.startswith(b"GET /v1/models "):
            pieces = refusal(200, MODELS)
        else:
            self.asked.append(json.loads(body))
            pieces = self.answers.pop(0)
        for piece in pieces:
            if callable(piece):
                piece(conn)
            else:
                conn.sendall(piece)

    def close(self):
        self.listener.close()
