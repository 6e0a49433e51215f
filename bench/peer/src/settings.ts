import { z } from 'zod';

/** Events in hand at a time, and connections to KV. */
const concurrency = z.coerce.number().int().positive().default(1024);

const kv = z.object({
  CF_API_BASE_URL: z.url().default('https://api.cloudflare.com/client/v4'),
  CF_ACCOUNT_ID: z.string().min(1),
  CF_NAMESPACE_ID: z.string().min(1),
  CF_API_TOKEN: z.string().min(1),
});

const peer = kv.extend({
  NATS_URL: z.string().min(1),
  SUBJECT_PREFIX: z.string().min(1).default('tasks'),
  QUEUE_GROUP: z.string().min(1).default('tasks-processor'),
  PORT: z.coerce.number().int().min(0).max(65_535).default(3001),
  CONCURRENCY: concurrency,
  REQUESTS_PER_SECOND: z.coerce.number().positive().optional(),
});

const floor = kv.extend({
  COUNT: z.coerce.number().int().positive().default(20_000),
  CONCURRENCY: concurrency,
});

export type KvSettings = z.infer<typeof kv>;

export const peerSettings = () => read(peer);
export const floorSettings = () => read(floor);

function read<T extends z.ZodType>(schema: T): z.infer<T> {
  const result = schema.safeParse(process.env);
  if (!result.success) {
    console.error(`Settings at fault:\n${z.prettifyError(result.error)}`);
    process.exit(2);
  }
  return result.data;
}
