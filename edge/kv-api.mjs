// A proxy to the API of workerd's local KV. That API answers only requests whose Host header is 127.0.0.1, and
// the processor of docker-compose.yml runs in another container. For demos only: the proxy checks no token.

import { createServer, request as send } from "node:http";

const API = "/cdn-cgi/local/explorer/api/";

createServer((request, response) => {
  if (request.url !== "/health" && !request.url.startsWith(API)) {
    response.writeHead(404).end();
    return;
  }
  const { method, url: path } = request;
  const headers = { ...request.headers, host: "127.0.0.1" };
  const forwarded = send({ host: "edge", port: 8787, method, path, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  // The client retries a request without an answer.
  forwarded.on("error", () => response.destroy());
  request.pipe(forwarded);
}).listen(8788);
