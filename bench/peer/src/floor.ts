// The same requests with the same client and nothing else: how fast the peer could be at most.
import { KvClient } from './kv.client.js';
import { floorSettings } from './settings.js';

const settings = floorSettings();
const kv = new KvClient(settings, settings.CONCURRENCY);
const now = new Date().toISOString();
let next = 0;

async function loop(): Promise<void> {
  while (next < settings.COUNT) {
    const id = `floor-${next++}`;
    const task = { id, title: `Task ${id}`, description: 'A task of the benchmark', status: 'pending' };
    await kv.put(`tasks:${id}`, JSON.stringify({ ...task, createdAt: now, updatedAt: now }));
  }
}

const start = performance.now();
await Promise.all(Array.from({ length: settings.CONCURRENCY }, loop));
const seconds = (performance.now() - start) / 1_000;
await kv.onApplicationShutdown();
console.log(JSON.stringify({ requests: settings.COUNT, seconds, perSecond: settings.COUNT / seconds }));
