import { KvError } from './kv.client.js';

/** Before the second attempt, the third, the fourth and the fifth. */
export const RETRY_DELAYS_MS = [1_000, 3_000, 10_000, 20_000];

export function isTransient(error: unknown): boolean {
  if (error instanceof KvError) return error.status >= 500 || error.status === 408 || error.status === 429;
  // undici's errors (time-outs, connections) carry a code; mistakes in values do not.
  return error instanceof Error && 'code' in error;
}
