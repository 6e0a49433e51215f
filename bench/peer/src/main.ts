import 'reflect-metadata';
import { createServer } from 'node:http';

import type { NatsConnection } from '@nats-io/transport-node';
import { StandardSchemaValidationPipe } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { type AsyncMicroserviceOptions, RpcException } from '@nestjs/microservices';

import { AppModule } from './app.module.js';
import { EventsServer } from './events.server.js';
import { peerSettings } from './settings.js';
import { Slots } from './slots.js';

const settings = peerSettings();

const app = await NestFactory.createMicroservice<AsyncMicroserviceOptions>(AppModule, {
  logger: ['fatal', 'error', 'warn'],
  inject: [Slots],
  useFactory: (slots: Slots) => ({
    strategy: new EventsServer(slots, {
      servers: settings.NATS_URL.split(','),
      queue: settings.QUEUE_GROUP,
      maxReconnectAttempts: -1,
    }),
  }),
});
app.useGlobalPipes(
  new StandardSchemaValidationPipe({
    exceptionFactory: (issues) =>
      new RpcException(issues.map(({ path, message }) => `${path?.join('.') || 'event'}: ${message}`).join('; ')),
  }),
);
app.enableShutdownHooks(['SIGTERM', 'SIGINT'], { useProcessExit: true });
await app.listen();

const nats = app.unwrap<NatsConnection>();
// The server knows of the subscriptions once it has answered.
await nats.flush();

createServer((request, response) => {
  const subscribed = !nats.isDraining() && !nats.isClosed();
  response.statusCode = request.url !== '/health' ? 404 : subscribed ? 200 : 503;
  response.end();
}).listen(settings.PORT);
