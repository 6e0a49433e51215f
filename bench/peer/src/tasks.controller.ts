import { Controller, Inject, UseFilters } from '@nestjs/common';
import { EventPattern, Payload } from '@nestjs/microservices';

import { taskCreated, taskDeleted, taskUpdated } from './events.js';
import type { TaskCreated, TaskDeleted, TaskUpdated } from './events.js';
import { peerSettings } from './settings.js';
import { SkipFilter } from './skip.filter.js';
import { TasksService } from './tasks.service.js';

const { SUBJECT_PREFIX } = peerSettings();

@Controller()
@UseFilters(SkipFilter)
export class TasksController {
  constructor(@Inject(TasksService) private readonly tasks: TasksService) {}

  @EventPattern<string>(`${SUBJECT_PREFIX}.created`)
  created(@Payload({ schema: taskCreated }) event: TaskCreated): Promise<void> {
    return this.tasks.create(event);
  }

  @EventPattern<string>(`${SUBJECT_PREFIX}.updated`)
  updated(@Payload({ schema: taskUpdated }) event: TaskUpdated): Promise<void> {
    return this.tasks.update(event);
  }

  @EventPattern<string>(`${SUBJECT_PREFIX}.deleted`)
  deleted(@Payload({ schema: taskDeleted }) event: TaskDeleted): Promise<void> {
    return this.tasks.delete(event);
  }
}
