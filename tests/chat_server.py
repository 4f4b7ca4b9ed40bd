"""A small real server that speaks OpenAI's chat protocol, and misbehaves as it is told, a fault a request."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATUS = {"429": 429, "500": 500, "503": 503, "400": 400, "401": 401, "404": 404}


class ChatServer:
    """`faults` are used up one a request; `requests` has every request; `answer` makes the text of an answer."""

    def __init__(self, answer=lambda number, content: f"answer {number} to: {content}"):
        self.faults, self.requests, self.answered, self.answer = [], [], 0, answer
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append({"body": body, "authorization": self.headers.get("authorization")})
                outer.reply(self, body, outer.faults.pop(0) if outer.faults else "")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def reply(self, handler, body, fault):
        if fault == "closed":
            handler.connection.close()
            return
        if fault == "slow":
            threading.Event().wait(1.0)  # a test may have taken time.sleep away
        if fault in STATUS:
            self.send(handler, STATUS[fault], {"error": {"message": f"fault {fault}"}}, {"retry-after": "7"})
            return
        if fault == "no json":
            self.send(handler, 200, "<html>not now</html>")
            return
        if fault in ("no choices", "null"):
            self.send(handler, 200, {"choices": []} if fault == "no choices" else None)
            return
        if fault not in ("cut", "slow", "no content"):
            self.answered += 1
        text = self.answer(self.answered, body["messages"][-1]["content"])
        reason = "length" if fault in ("length", "all thought") else "stop"
        message = {"role": "assistant", "content": None if fault in ("all thought", "no content") else text}
        value = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        }
        if fault == "no usage":
            del value["usage"]
        self.send(handler, 200, value, cut=fault == "cut")

    def send(self, handler, status, value, headers=(), cut=False):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        for name, text in dict(headers).items():
            handler.send_header(name, text)
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            handler.wfile.write(data[: len(data) // 2] if cut else data)
        handler.close_connection = True

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
