// The API of workerd's local KV answers only those who call it 127.0.0.1. This calls it so, for those who reach this port: the
// processor of docker-compose.yml, which is in another container. For trying out only: it asks nobody for a token.

import { createServer, request } from "node:http";

const API = "/cdn-cgi/local/explorer/api/";

createServer((asked, answer) => {
  if (asked.url !== "/health" && !asked.url.startsWith(API)) {
    answer.writeHead(404).end();
    return;
  }
  const { method, url: path } = asked;
  const headers = { ...asked.headers, host: "127.0.0.1" };
  const passed = request({ host: "edge", port: 8787, method, path, headers }, (given) => {
    answer.writeHead(given.statusCode, given.headers);
    given.pipe(answer);
  });
  // Whoever gets no answer tries again.
  passed.on("error", () => answer.destroy());
  asked.pipe(passed);
}).listen(8788);
