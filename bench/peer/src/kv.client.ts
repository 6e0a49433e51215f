import type { OnApplicationShutdown } from '@nestjs/common';
import { Pool, type Dispatcher } from 'undici';

import type { KvSettings } from './settings.js';

export class KvError extends Error {
  constructor(
    readonly status: number,
    answer: string,
  ) {
    super(`KV answered ${status}: ${answer.slice(0, 300)}`);
  }
}

/** Cloudflare KV's REST API v4, one value a request. No retry, no pacing: one call, one request. */
export class KvClient implements OnApplicationShutdown {
  private readonly pool: Pool;
  private readonly values: string;
  private readonly authorization: { authorization: string };
  private readonly json: { authorization: string; 'content-type': string };

  constructor(settings: KvSettings, connections: number) {
    const base = new URL(settings.CF_API_BASE_URL);
    this.pool = new Pool(base.origin, {
      connections,
      keepAliveTimeout: 60_000,
      headersTimeout: 10_000,
      bodyTimeout: 10_000,
    });
    const account = encodeURIComponent(settings.CF_ACCOUNT_ID);
    const namespace = encodeURIComponent(settings.CF_NAMESPACE_ID);
    const root = base.pathname.replace(/\/+$/, '');
    this.values = `${root}/accounts/${account}/storage/kv/namespaces/${namespace}/values/`;
    this.authorization = { authorization: `Bearer ${settings.CF_API_TOKEN}` };
    this.json = { ...this.authorization, 'content-type': 'application/json' };
  }

  /** Nothing where there is no such key. */
  async get(key: string): Promise<string | undefined> {
    const { statusCode, body } = await this.request('GET', key);
    const text = await body.text();
    if (statusCode === 200) return text;
    // A missing namespace is a 404 too; only 10009 says that the key is missing.
    if (statusCode === 404 && text.includes('10009')) return undefined;
    throw new KvError(statusCode, text);
  }

  async put(key: string, value: string): Promise<void> {
    await this.write(await this.request('PUT', key, value));
  }

  async delete(key: string): Promise<void> {
    await this.write(await this.request('DELETE', key));
  }

  async onApplicationShutdown(): Promise<void> {
    await this.pool.close();
  }

  private request(method: Dispatcher.HttpMethod, key: string, body: string | null = null) {
    return this.pool.request({
      method,
      path: this.values + encodeURIComponent(key),
      headers: body === null ? this.authorization : this.json,
      body,
    });
  }

  private async write({ statusCode, body }: Dispatcher.ResponseData): Promise<void> {
    if (statusCode !== 200) throw new KvError(statusCode, await body.text());
    // Read to its end, or the connection could not be used again.
    await body.dump();
  }
}
