import { type ArgumentsHost, Catch, Logger, type RpcExceptionFilter } from '@nestjs/common';
import type { NatsContext } from '@nestjs/microservices';
import { EMPTY, type Observable } from 'rxjs';

/** An event that is invalid, or that failed for good, is logged in one line and skipped. */
@Catch()
export class SkipFilter implements RpcExceptionFilter {
  private readonly logger = new Logger('Skipped');

  catch(error: unknown, host: ArgumentsHost): Observable<never> {
    const subject = host.switchToRpc().getContext<NatsContext>().getSubject();
    this.logger.error(`${subject}: ${error instanceof Error ? error.message : String(error)}`);
    return EMPTY;
  }
}
