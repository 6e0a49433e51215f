import type { Msg, NatsConnection } from '@nats-io/transport-node';
import {
  type ConsumerDeserializer,
  type IncomingEvent,
  type MessageHandler,
  type NatsOptions,
  ServerNats,
} from '@nestjs/microservices';

import type { Slots } from './slots.js';

/** Events come from any publisher as plain JSON, not in Nest's `{pattern, data}`. */
class RawJsonDeserializer implements ConsumerDeserializer {
  deserialize(message: Msg, options: { channel: string }): IncomingEvent {
    return { pattern: options.channel, data: message.json() };
  }
}

/** Nest's NATS transport, with as many messages in its handlers as there are slots, and a drain at the end. */
export class EventsServer extends ServerNats {
  constructor(
    private readonly slots: Slots,
    options: NonNullable<NatsOptions['options']>,
  ) {
    super({ ...options, deserializer: new RawJsonDeserializer() });
  }

  override getMessageHandler(channel: string) {
    return (error: Error | null, message: Msg): void => {
      if (error) this.handleError(error);
      else this.slots.run(() => this.handleMessage(channel, message).catch((failure) => this.handleError(failure)));
    };
  }

  /** Subjects are plain strings here: no need to try each one as a JSON pattern first, as Nest does. */
  override getHandlerByPattern(pattern: string): MessageHandler | null {
    return this.messageHandlers.get(pattern) ?? null;
  }

  /** What is no JSON gets one line, as other invalid events do. */
  protected override handleError(error: unknown): void {
    this.logger.error(String(error));
  }

  override async close(): Promise<void> {
    await this.unwrap<NatsConnection>().drain();
    await this.slots.idle();
    await super.close();
  }
}
