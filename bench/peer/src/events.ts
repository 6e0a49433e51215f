import { z } from 'zod';

/** A length in characters, not in UTF-16 units. */
const characters = (least: number, most: number) =>
  z.string().refine(
    (text) => {
      // Only a text that could be too long needs its characters counted.
      const length = text.length > most ? [...text].length : text.length;
      return length >= least && length <= most;
    },
    { error: `must be ${least} to ${most} characters` },
  );

const noControl = /^\P{Cc}*$/u;

const id = z
  .string()
  .regex(noControl, 'must have no control characters')
  .refine((text) => text.isWellFormed(), 'must be well-formed')
  .refine((text) => text !== '.' && text !== '..', 'must not be "." or ".."')
  .refine((text) => text !== '' && Buffer.byteLength(text) <= 256, 'must be 1 to 256 bytes');
const title = characters(1, 200).regex(noControl, 'must have no control characters');
const description = characters(0, 2000);
const status = z.enum(['pending', 'in_progress', 'completed', 'cancelled']);

const event = <T extends z.ZodType>(data: T) =>
  z.object({ correlationId: z.string().regex(/^[ -~]{1,128}$/, 'must be 1 to 128 printable ASCII characters'), data });

export const taskCreated = event(z.object({ id, title, description, status }));
export const taskUpdated = event(
  z.object({
    id,
    title: title.exactOptional(),
    description: description.exactOptional(),
    status: status.exactOptional(),
  }),
);
export const taskDeleted = event(z.object({ id }));

export type TaskCreated = z.infer<typeof taskCreated>;
export type TaskUpdated = z.infer<typeof taskUpdated>;
export type TaskDeleted = z.infer<typeof taskDeleted>;

export interface Task {
  id: string;
  title: string;
  description: string;
  status: z.infer<typeof status>;
  createdAt: string;
  updatedAt: string;
}
